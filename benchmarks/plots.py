"""The plots of module.csv: how time and memory grow with each size, with the machine's limit."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from slotattn_fast.report.page import colour

from .contenders import NAMES, PASSES, label
from .module import MEMORY, SIZES, TIME, limit_ms

Row = dict[str, str]

LONG = {"N": "inputs N", "K": "slots K", "B": "images B", "D": "width D of slots and inputs", "T": "iterations T"}
WHAT = {TIME: "milliseconds", MEMORY: "peak memory, MiB"}


def plot(rows: Sequence[Row], stem: Path) -> list[Path]:
    """Writes STEM-N-K.png and STEM-B-D-T.png, those of which there are rows; returns their paths."""
    written = []
    for sizes, kinds in ((("N", "K"), (TIME, MEMORY)), (("B", "D", "T"), (TIME,))):
        grown = {size: series(rows, size) for size in sizes}
        if not any(grown.values()):
            continue
        figure = Figure(figsize=(4.6 * len(sizes), 3.6 * len(kinds) + 0.6), layout="constrained")
        grid = figure.subplots(len(kinds), len(sizes), squeeze=False)
        for axes, kind in zip(grid, kinds, strict=True):
            for ax, size in zip(axes, sizes, strict=True):
                draw(ax, [row for row in grown[size] if row["measured"] == kind], size, kind)
        handles = {text: line for ax in grid.flat for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle(_title([row for found in grown.values() for row in found]), fontsize=10)
        path = stem.with_name(f"{stem.name}-{'-'.join(sizes)}.png")
        figure.savefig(path, dpi=110)
        written.append(path)
    return written


def series(rows: Sequence[Row], size: str) -> list[Row]:
    """The rows of forward+backward in which only this size is other than most have it, in the order of the size."""
    trained = [row for row in rows if row["pass"] == PASSES[1]]
    best: list[Row] = []
    for middle in dict.fromkeys(_others(row, size) for row in trained):
        found = [row for row in trained if _others(row, size) == middle]
        if len({row[size] for row in found}) > max(1, len({row[size] for row in best})):
            best = found
    return sorted(best, key=lambda row: int(row[size]))


def _others(row: Row, size: str) -> tuple[str, ...]:
    varied = ("D", "D_in") if size == "D" else (size,)
    return (row["dtype"], *(row[name] for name in SIZES if name not in varied))


def draw(ax: Axes, rows: Sequence[Row], size: str, kind: str) -> None:
    """Log axes: a line for each contender, for times with the 20th to 80th percentile, and the limit."""
    value = "ms_median" if kind == TIME else "peak_mib"
    for number, name in enumerate(NAMES):
        found = [row for row in rows if row["contender"] == name and row[value] and float(row[value]) > 0]
        if len(found) < 2:  # the compiled, which are not measured at every size
            continue
        x = [int(row[size]) for row in found]
        ax.plot(x, [float(row[value]) for row in found], "o-", ms=4, color=colour(number), label=label(name))
        if kind == TIME:
            low, high = ([float(row[column]) for row in found] for column in ("ms_p20", "ms_p80"))
            ax.fill_between(x, low, high, color=colour(number), alpha=0.2, linewidth=0)
    limit = {int(row[size]): limit_ms(row) for row in rows if row["floor_ms"]}
    if limit:
        ax.plot(list(limit), list(limit.values()), "--", color="0.4", label="limit of the machine")
    ax.set(xscale="log", yscale="log", xlabel=LONG[size], ylabel=WHAT[kind])
    ticks = sorted({int(row[size]) for row in rows})
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter([f"{tick:,}" for tick in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(alpha=0.25)
    if rows:
        fixed = (name for name in LONG if name != size)
        ax.set_title(", ".join(f"{name} = {rows[0][name]}" for name in fixed), fontsize=9)


def _title(rows: Sequence[Row]) -> str:
    row, commits = rows[0], ", ".join(dict.fromkeys(f"commit {row['commit']}, {row['date']}" for row in rows))
    return (
        f"One call of SlotAttention, forward and backward, {row['dtype']}\n{row['device']}, {row['threads']} threads, "
        f"torch {row['torch']}, {commits}"
    )
