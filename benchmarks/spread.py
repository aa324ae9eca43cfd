"""The median of what was measured, with its 20th and 80th percentile: columns of a row, and the cell of a table."""

import statistics
from collections.abc import Mapping, Sequence
from operator import truediv
from typing import Any


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20, 50 and 80 %, within what was measured."""
    p20, _, _, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return p20, statistics.median(values), p80


def names(what: str) -> tuple[str, str, str]:
    """The columns."""
    return f"{what}_p20", f"{what}_median", f"{what}_p80"


def columns(what: str, values: Sequence[float], digits: int = 2) -> dict[str, float]:
    return dict(zip(names(what), (round(value, digits) for value in percentiles(values)), strict=True))


def ratios(what: str, values: Sequence[float], by: Sequence[float]) -> dict[str, float]:
    """The columns of the ratios in each round, which a machine that is slow for a while changes less than times."""
    return columns(what, list(map(truediv, values, by)), 3)


def cell(row: Mapping[str, Any], what: str, form: str, unit: str = "") -> str:
    """The median and, in brackets, the percentiles, from a row or from one that was read from a file."""
    low, middle, high = (format(float(row[name]), form) for name in names(what))
    return f"{middle}{unit and f' {unit}'} ({low} to {high})"


def ratio_cell(row: Mapping[str, Any], what: str, form: str = ".1f") -> str:
    """The same of ratios, empty where there are none."""
    low, middle, high = (row[name] and format(float(row[name]), form) for name in names(what))
    return middle and f"**{middle}x** ({low} to {high})"
