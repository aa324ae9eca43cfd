"""The tables and plots of what was measured, made of the files of results and nothing else.

    python -m benchmarks report [--out benchmarks/results]

Of module.csv, for CPU and GPU each the machine that was measured last: module-cpu.md or module-cuda.md, which also go
into README.md where their folder is benchmarks/results, and module-cpu-N-K.png and module-cpu-B-D-T.png. Of
gpu-time.json and gpu-steps.json the .md beside them, and of the first a summary for README.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from slotattn_fast.atomic import write_text

from . import gpu_steps_table, gpu_table
from .conditions import INSTALL, add_out, command, is_shown, put_into_pages, read_rows
from .contenders import NAMES, OURS, PASSES, label
from .gpu_record import load
from .module import COLUMNS, CPU_SHAPES, CSV, DIM, GPU_SHAPES, ITERS, MEMORY, NUMBERS, QUICK_SHAPES, SIZES, TIME
from .reasons import NOT_MEASURED
from .spread import cell, ratio_cell

Row = dict[str, str]


def report(folder: Path) -> list[Path]:
    """Writes all that the rows give; returns the files."""
    rows, written = read_rows(folder / CSV, COLUMNS, (*SIZES, *NUMBERS)), []
    for where in ("cpu", "cuda"):
        here = newest([row for row in rows if row["where"] == where])
        if not here:
            continue
        text = tables(here, folder / CSV)
        file = folder / f"module-{where}.md"
        write_text(file, text)
        if is_shown(folder):
            put_into_pages(file.name, text)
        written.append(file)
        try:
            from .plots import plot  # which the tables do without
        except ModuleNotFoundError as missing:
            print(f"no plots: {missing}; {INSTALL}", file=sys.stderr)
        else:
            written += plot(here, folder / f"module-{where}")
    return written


def gpu_report(folder: Path) -> list[Path]:
    """Of the records of the stages on a GPU; returns the files."""
    written = []
    for stage, report_of in (("time", gpu_table.report), ("steps", gpu_steps_table.report)):
        path = folder / f"gpu-{stage}.json"
        if not path.exists():
            continue
        record, file = load(path), path.with_suffix(".md")
        write_text(file, report_of(record))
        if stage == "time":
            gpu_table.show(record, path)
        written.append(file)
    return written


def newest(rows: Sequence[Row]) -> list[Row]:
    """Those of the machine that was measured last."""
    if not rows:
        return []
    last = rows[-1]  # as `upsert` leaves them
    return [row for row in rows if (row["device"], row["threads"]) == (last["device"], last["threads"])]


def tables(rows: Sequence[Row], path: Path) -> str:
    """Markdown: the conditions, time, memory, and who was not measured."""
    names = [name for name in NAMES if any(row["contender"] == name and not row[NOT_MEASURED] for row in rows)]
    parts = [described(_shapes(rows) or rows, path), time_table(rows, names), memory_table(rows, names)]
    reasons = {(row["contender"], row[NOT_MEASURED]) for row in _shapes(rows) if row[NOT_MEASURED]}
    if reasons:
        parts.append("Not measured: " + "; ".join(f"{name}: {' '.join(why.split())}" for name, why in sorted(reasons)))
    return "\n\n".join(part for part in parts if part) + "\n"


def described(rows: Sequence[Row], path: Path) -> str:
    """Where, with what and how they were measured."""

    def all_of(column: str) -> str:
        return ", ".join(dict.fromkeys(row[column] for row in rows if row[column]))

    rates = " and ".join(
        f"{_range(rows, column)} {unit}"
        for column, unit in (("copy_gb_per_s", "GB/s"), ("product_gflop_per_s", "GFLOP/s"))
    )
    return (
        f"{all_of('device')}, {all_of('threads')} threads, torch {all_of('torch')}, Triton {all_of('triton')}, "
        f"slot-attention {all_of('slot-attention')}, Python {all_of('python')}; D = {DIM}, T = {ITERS}; medians of "
        f"{all_of('rounds')} interleaved rounds (sweeps: {all_of('sweeps')}); "
        f"copy and matrix product {rates}; commit {all_of('commit')}, {all_of('date')}: `{all_of('command')}`, {path}."
    )


def _range(rows: Sequence[Row], column: str) -> str:
    values = sorted(float(row[column]) for row in rows if row[column])
    if not values:
        return "?"
    return f"{values[0]:.0f}" if f"{values[0]:.0f}" == f"{values[-1]:.0f}" else f"{values[0]:.0f} to {values[-1]:.0f}"


def _shapes(rows: Sequence[Row]) -> list[Row]:
    """Those of the shapes that tables show."""
    wanted = {(*map(str, size), str(DIM), str(ITERS)) for size in (*CPU_SHAPES, *GPU_SHAPES, *QUICK_SHAPES)}
    return [row for row in rows if tuple(row[size] for size in ("B", "N", "K", "D", "T")) in wanted]


def _lines(rows: Sequence[Row], measured: str) -> list[tuple[str, dict[str, Row]]]:
    """The head of each line of a table, and its row by contender."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in _shapes(rows):
        if row["measured"] == measured:
            key = tuple(row[name] for name in ("dtype", "B", "N", "K", "pass"))
            found.setdefault(key, {})[row["contender"]] = row
    order = sorted(found, key=lambda key: (key[0], -int(key[2]), -int(key[1]), PASSES.index(key[4])))
    heads = {key: f"| {key[1]} x {key[2]} x {key[3]} | {key[0]} | {key[4]} " for key in order}
    return [(heads[key], found[key]) for key in order]


def _head(names: Sequence[str], *more: str) -> list[str]:
    columns = ["B x N x K", "dtype", "pass", *map(label, names), *more]
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]


def time_table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Milliseconds, of the others with how many times as long as ours; ours as part of the limit."""
    found = _lines(rows, TIME)
    if not found:
        return ""
    lines = [
        "Milliseconds, and how many times as long as ours in the same round; in brackets the 20th to 80th percentile, "
        "ours in milliseconds, the others in times:",
        "",
        *_head(names, "ours, part of the limit"),
    ]
    for head, row in found:
        own = next((name for name in OURS if row.get(name, {}).get("ms_median")), OURS[0])
        cells = [_time(row.get(name), name == own) for name in names]
        share = row.get(own, {}).get("of_limit")
        lines.append(f"{head}| {' | '.join(cells)} | {f'{float(share):.0%}' if share else ''} |")
    return "\n".join(lines)


def _time(row: Row | None, own: bool) -> str:
    if row is None or not row["ms_median"]:
        return ""
    form = ".1f" if float(row["ms_median"]) >= 10 else ".2f"
    if own or not row["times_ours_median"]:
        return cell(row, "ms", form)
    return f"{float(row['ms_median']):{form}} {ratio_cell(row, 'times_ours')}"


def memory_table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """MiB beyond what a call is given and returns, and in all."""
    found = _lines(rows, MEMORY)
    if not found:
        return ""
    lines = ["Peak memory in MiB beyond what a call is given and returns (and in all):", "", *_head(names)]
    for head, row in found:
        cells = [_memory(row.get(name)) for name in names]
        lines.append(f"{head}| {' | '.join(cells)} |")
    return "\n".join(lines)


def _memory(row: Row | None) -> str:
    if row is None or not row["peak_mib"]:
        return ""
    return f"{float(row['peak_mib']):.0f} ({float(row['absolute_mib']):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    given = parser.parse_args()
    written = [*report(given.out), *gpu_report(given.out)]
    for file in written:
        print(file)
    if not written:
        print(f"{given.out / CSV}: nothing to report; `python -m benchmarks` measures")


if __name__ == "__main__":
    command(main)
