"""The one error that users of a data set meet."""


class DataError(Exception):
    """Data that cannot be read, made or used. The message is one line: which file and record, why, and what to do."""
