"""Whether a second run of the benchmarks found what the first did, within the spread that each states.

    python -m benchmarks --out FIRST; python -m benchmarks --out SECOND
    python -m benchmarks.repeated FIRST SECOND [--out benchmarks/results]

Two timings agree where their 20th to 80th percentiles overlap, and so do two ratios of timings in the same round.
Compared are those of module.csv, discovery-cpu.csv and property-cpu.csv (or -cuda) that are in both. Writes
repeated.md, which names those that do not agree, and tells the rates of the machine in both runs: where these differ,
so do the times, but ratios need not.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slotattn_fast.atomic import write_text

from .conditions import RESULTS, command, made, read_rows
from .module import CSV, SIZES
from .spread import cell, names

Row = Mapping[str, str]

NAME = "repeated.md"
RATES = ("copy_gb_per_s", "product_gflop_per_s")
STEP = ("device", "threads", "preset", "batch", "contender", "part", "pass")
# By file: what tells a timing from the others, and its ratio to another timing of the same rounds.
FILES = {
    CSV: (("device", "threads", "dtype", *SIZES, "pass", "contender"), "times_ours"),
    **{f"{task}-{where}.csv": (STEP, "faster") for task in ("discovery", "property") for where in ("cpu", "cuda")},
}


class Twice(NamedTuple):
    """A timing of both runs."""

    first: Row
    second: Row

    def agrees(self, what: str) -> bool:
        low, _, high = names(what)
        return max(float(row[low]) for row in self) <= min(float(row[high]) for row in self)

    def change(self, what: str) -> float:
        """The second's median by the first's."""
        _, median, _ = names(what)
        return float(self.second[median]) / float(self.first[median])

    def has(self, ratio: str) -> bool:
        """Whether it has one, to another than itself."""
        return all(row[name] != "" for row in self for name in names(ratio)) and any(
            float(row[name]) != 1 for row in self for name in names(ratio)
        )


def both(first: Path, second: Path, key: Sequence[str], more: Sequence[str], numbers: Sequence[str]) -> list[Twice]:
    """The timings that are in both files. Ends the program where one is damaged or lacks a column."""
    needed = (*key, *more, *numbers)
    one, other = (
        {tuple(row[name] for name in key): row for row in read_rows(p, needed, numbers) if row["ms_median"]}
        for p in (first, second)
    )
    return [Twice(row, other[which]) for which, row in one.items() if which in other]


def table(first: Path, second: Path) -> str:
    """Markdown. Raises FileNotFoundError where no timing is in both folders."""
    lines = [
        "| file | timings | agree | second by first | ratios | agree | second by first |",
        "|---|---|---|---|---|---|---|",
    ]
    apart, conditions, rates = [], [], ""
    for file, (key, ratio) in FILES.items():
        numbers = (*names("ms"), *names(ratio), *(RATES if file == CSV else ()))
        found = both(first / file, second / file, key, ("commit", "date"), numbers)
        if not found:
            continue
        line = f"| {file} |"
        for what, form, unit, compared in (
            ("ms", ".4g", "ms", found),
            (ratio, ".2f", "times", [twice for twice in found if twice.has(ratio)]),
        ):
            missed = [twice for twice in compared if not twice.agrees(what)]
            changes = _middle([twice.change(what) for twice in compared])
            line += f" {len(compared)} | {len(compared) - len(missed)} | {changes} |"
            apart += [
                f"| {' '.join(t.first[name] for name in key[2:])} "
                f"| {cell(t.first, what, form, unit)} | {cell(t.second, what, form, unit)} |"
                for t in missed
            ]
        lines.append(line)
        runs = dict.fromkeys(f"commit {row['commit']}, {row['date']}" for row in found[0])
        if file == CSV:
            copy, product = (" and ".join(f"{float(x[rate]):.0f}" for x in found[0]) for rate in RATES)
            rates = f"Copy {copy} GB/s, matrix product {product} GFLOP/s. "
        row = found[0].first
        conditions.append(f"{row['device']}, {row['threads']} threads, {' and '.join(runs)}")
    if not conditions:
        raise FileNotFoundError(
            f"{first}, {second}: no timing is in both, expected two folders of `python -m benchmarks`"
        )
    head = (
        f"{conditions[0]}: two runs of `python -m benchmarks`, compared by `python -m benchmarks.repeated`. Two "
        f"timings agree where their 20th to 80th percentiles overlap, and so do two ratios of timings of the same "
        f"rounds, to ours in module.csv, of the plain loop to each of the others' steps in the rest. {rates}"
        f'"Second by first" is the middle 80 % of the medians of the one by those of the other.'
    )
    if apart:
        apart = ["", "| do not agree | first | second |", "|---|---|---|", *apart]
    return "\n".join([head, "", *lines, *apart]) + "\n"


def _middle(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, high = np.percentile(values, (10, 90))
    return f"{low:.2f} to {high:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="folder of the first run's results")
    parser.add_argument("second", type=Path, help="of the second run's")
    parser.add_argument("--out", type=made, default=RESULTS, help=f"folder of {NAME} (default {RESULTS})")
    given = parser.parse_args()
    if given.first.resolve() == given.second.resolve():
        parser.error(f"got {given.first} twice, expected the folders of two runs")
    try:
        text = table(given.first, given.second)
    except FileNotFoundError as error:
        parser.error(str(error))
    write_text(given.out / NAME, text)
    print(text)


if __name__ == "__main__":
    command(main)
