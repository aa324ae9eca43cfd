"""The plots of the report: scores of arms as bars with their seeds, and curves with their spread over the seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slotattn_fast.paper.small_pictures import save
from slotattn_fast.report.page import colour
from slotattn_fast.report.tables import mean_and_deviation

Values = Sequence[float]
"""Percent, of each seed."""


class Bars(NamedTuple):
    """One axes: for each of `groups`, a bar for each arm."""

    title: str
    xlabel: str
    ylabel: str
    groups: Sequence[str]
    arms: Mapping[str, Sequence[Values]]
    """In the order of the groups."""


class Curves(NamedTuple):
    """One axes: for each name a line over x."""

    title: str
    xlabel: str
    ylabel: str
    x: Sequence[int]
    lines: Mapping[str, Sequence[Values]]
    """In the order of x."""


Panel = Bars | Curves


def plot(path: Path, panels: Sequence[Panel]) -> None:
    """Writes a PNG with the panels beside each other."""
    figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)
    for ax, panel in zip(grid[0], panels, strict=True):
        if isinstance(panel, Bars):
            _bars(ax, panel)
        else:
            _curves(ax, panel)
        ax.set(xlabel=panel.xlabel, ylabel=panel.ylabel, ylim=(_bottom(panel), 100))
        ax.set_title(panel.title, fontsize=10)
        ax.grid(axis="y", color="0.9")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize=8)
    save(figure, path)


def _bottom(panel: Panel) -> float:
    """0, or below an FG-ARI that is lower."""
    arms = panel.arms if isinstance(panel, Bars) else panel.lines
    least = min((value for groups in arms.values() for values in groups for value in values), default=0.0)
    return min(0.0, 1.1 * least)


def _bars(ax: Axes, panel: Bars) -> None:
    width = 0.8 / len(panel.arms)
    for number, (arm, groups) in enumerate(panel.arms.items()):
        x = np.arange(len(groups)) - 0.4 + width * (number + 0.5)
        means = [mean_and_deviation(values).mean if values else np.nan for values in groups]
        ax.bar(x, means, width * 0.9, color=colour(number), alpha=0.6, label=arm)
        for centre, values in zip(x, groups, strict=True):
            ax.plot([centre] * len(values), values, "o", color=colour(number), ms=4, mec="0.2", mew=0.5)
    if len(panel.groups) > 1:
        ax.set_xticks(range(len(panel.groups)), panel.groups)
    else:
        ax.set_xticks([])


def _curves(ax: Axes, panel: Curves) -> None:
    for number, (name, points) in enumerate(panel.lines.items()):
        known = [(x, mean_and_deviation(values)) for x, values in zip(panel.x, points, strict=True) if values]
        if not known:
            continue
        x = [at for at, _ in known]
        mean = np.array([value.mean for _, value in known])
        deviation = np.array([value.deviation or 0 for _, value in known])
        ax.plot(x, mean, "o-", ms=4, color=colour(number), label=name)
        ax.fill_between(x, mean - deviation, mean + deviation, color=colour(number), alpha=0.2, linewidth=0)
    ax.set_xticks(panel.x)
