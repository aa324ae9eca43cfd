"""The median of what was measured, with its 20th and 80th percentile: columns of a row, and the cell of a table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

WHICH = ("p20", "median", "p80")


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20, 50 and 80 %, within what was measured."""
    p20, _, _, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return p20, statistics.median(values), p80


def columns(name: str, values: Sequence[float], digits: int = 2) -> dict[str, float]:
    """NAME_p20, NAME_median and NAME_p80."""
    named = zip(WHICH, percentiles(values), strict=True)
    return {f"{name}_{which}": round(value, digits) for which, value in named}


def cell(row: Mapping[str, Any], name: str, form: str, unit: str = "") -> str:
    """The median and, in brackets, the percentiles, from a row or from one that was read from a file."""
    low, middle, high = (format(float(row[f"{name}_{which}"]), form) for which in WHICH)
    return f"{middle}{unit and f' {unit}'} ({low} to {high})"
