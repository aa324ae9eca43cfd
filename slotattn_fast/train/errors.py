"""The errors that users of a run meet."""


class RunError(Exception):
    """A run cannot start, go on or be read. The message is one line: what is wrong and what to do."""


class RunInUse(RunError):
    """Another process has it."""
