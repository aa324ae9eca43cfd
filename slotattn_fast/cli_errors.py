"""What the command line raises for wrong usage."""


class UsageError(Exception):
    """Arguments that cannot be used."""
