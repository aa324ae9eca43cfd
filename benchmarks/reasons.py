"""Why a measurement is missing: the column of a row, or the key of a result, and what it says."""

from math import inf

NOT_MEASURED = "not measured"


def failed(failure: Exception) -> str:
    """One that could not be made."""
    return f"{type(failure).__name__}: {failure}"[:500]


def off(error: float, allowed: float) -> str:
    """One of what is wrong, which is not timed."""
    return f"off by {error:.1e} of the norm, and {allowed:.1e} is allowed"


def too_wrong(error: float, allowed: float | None, teller: str) -> str:
    """Why one of this error is not timed, or empty; `allowed` is None where `teller`, who tells it, failed."""
    if allowed is None:
        return f"{teller}, which tells the error that is allowed, failed"
    return "" if error <= allowed < inf else off(error, allowed)


def cell(why: str) -> str:
    """Any text in a cell of a Markdown table."""
    return " ".join(why.replace("|", "/").split())
