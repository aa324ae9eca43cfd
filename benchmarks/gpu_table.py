"""The report of the stage `time`: each target beside what was reached, all contenders, and the profile.

`summary` is the table of README.md: one line a shape, dtype and pass.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .conditions import is_shown, put_into_pages
from .gpu_record import Found, Record, described, last_finished, why_unfinished
from .reasons import NOT_MEASURED, cell

DISCOVERY, SETS, SINGLE = (64, 16384, 7), (512, 1024, 10), (1, 16384, 7)  # B, N, K
SIZES = (DISCOVERY, SETS, SINGLE)
PROFILE = "profile"
MAX_AUTOTUNE = ", max-autotune"  # ends the names of parts
Rows = dict[str, dict[str, Any]]  # by contender


class Target(NamedTuple):
    """What a part of a stage is to reach; `reached` is None where it could not be measured."""

    part: str
    what: str
    bound: float
    reached: Callable[[Found], float | None]
    at_most: bool = False

    def is_met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


def part_name(size: tuple[int, int, int], dtype: str, which: str, autotuned: bool = False) -> str:
    return f"{' x '.join(map(str, size))} {dtype} {which}{MAX_AUTOTUNE * autotuned}"


def median(found: Found, contender: str) -> float | None:
    """Milliseconds."""
    for row in found["rows"]:
        if row["contender"] == contender and "ms" in row:
            return row["ms"][1]
    return None


def times_faster(than: str, ours: str = "ours") -> Callable[[Found], float | None]:
    def reached(found: Found) -> float | None:
        other, own = median(found, than), median(found, ours)
        return None if other is None or own is None else other / own

    return reached


def part_of_copy(found: Found) -> float | None:
    """Bytes/s of the passes over the inputs that the design has, T reads, or 2 T reads and a write, over a copy's."""
    own = median(found, "ours")
    if own is None or "copy_bytes_per_s" not in found:
        return None
    return found["units"] * found["inputs_bytes"] / (own / 1e3) / found["copy_bytes_per_s"]


def memory_share(found: Found) -> float | None:
    """Peak memory of ours beyond inputs, outputs and gradients, over the inputs'."""
    for row in found["rows"]:
        if row["contender"] == "ours" and row.get("peak_bytes") is not None:
            return row["peak_bytes"] / found["inputs_bytes"]
    return None


def trained(size: tuple[int, int, int], autotuned: bool = False) -> str:
    """The part whose targets these are: forward and backward in bfloat16."""
    return part_name(size, "bfloat16", "forward+backward", autotuned)


EAGER, COMPILED, AUTOTUNED = "times faster than the reference", "than it compiled", "than it compiled, max-autotune"
TARGETS = (
    Target(trained(DISCOVERY), EAGER, 10, times_faster("reference")),
    Target(trained(DISCOVERY, True), AUTOTUNED, 4, times_faster("max-autotune")),
    Target(trained(DISCOVERY), "part of the copy's bytes/s over 7 units", 0.8, part_of_copy),
    Target(trained(DISCOVERY), "peak memory over the inputs'", 0.05, memory_share, at_most=True),
    Target(trained(SETS), EAGER, 8, times_faster("reference")),
    Target(trained(SETS), COMPILED, 3, times_faster("compiled")),
    Target(trained(SETS, True), AUTOTUNED, 3, times_faster("max-autotune")),
    Target(trained(SINGLE), COMPILED, 1, times_faster("compiled")),
    Target(trained(SINGLE, True), AUTOTUNED, 1, times_faster("max-autotune")),
    Target(trained(SINGLE), f"captured graph, {COMPILED}", 3, times_faster("compiled", "ours, graph")),
    Target(trained(SINGLE, True), f"captured graph, {AUTOTUNED}", 3, times_faster("max-autotune", "ours, graph")),
)


def report(record: Record) -> str:
    """Markdown."""
    heading = "B x N x K, dtype, what is called"
    return "\n\n".join([targets(record, TARGETS, heading), *(part(*item) for item in record.items())]) + "\n"


def summary(record: Record, path: Path) -> str:
    """Markdown: milliseconds and peak memory of all that were timed, and where. `path` is the record's."""
    lines: dict[str, dict[str, str]] = {}
    where: dict[str, dict[str, None]] = {}  # what each condition was, in all parts
    for name, entry in record.items():
        finished = last_finished(entry)
        if finished is None or name == PROFILE:
            continue
        for row in finished["found"].get("rows", ()):
            if "ms" in row:
                lines.setdefault(name.removesuffix(MAX_AUTOTUNE), {}).setdefault(row["contender"], _short(row))
        for key, value in finished["conditions"].items():
            where.setdefault(key, {})[value] = None
    if not lines:
        return f"{NOT_MEASURED}\n"
    names = list(dict.fromkeys(name for line in lines.values() for name in line))
    found = {key: ", ".join(values) for key, values in where.items()}
    table = [
        f"{found['gpu']}, driver {found['driver']}, torch {found['torch']}, Triton {found['triton']}, Python "
        f"{found['python']}, commit {found['commit']}, {found['date']}: `python -m benchmarks.gpu time`, {path}. "
        "Medians in milliseconds, and peak memory beyond what a call is given and returns:",
        "",
        f"| B x N x K | dtype | pass | {' | '.join(names)} |",
        f"|---|---|---|{'---|' * len(names)}",
    ]
    for part, line in lines.items():
        head = " | ".join(part.rsplit(" ", 2))
        table.append(f"| {head} | {' | '.join(line.get(name, '') for name in names)} |")
    return "\n".join(table) + "\n"


def show(record: Record, path: Path) -> None:
    """Puts the summary into the pages that have a place for it, if the record at `path` is of the folder they show."""
    if is_shown(path.parent):
        put_into_pages(f"{path.stem}.md", summary(record, path))


def _short(row: dict[str, Any]) -> str:
    memory = row.get("peak_bytes")
    return f"{row['ms'][1]:.2f}" + ("" if memory is None else f" ({memory / 2**20:.0f} MiB)")


def targets(record: Record, wanted: Sequence[Target], heading: str) -> str:
    lines = [f"| {heading} | | target | reached, by medians | | commit |", "|---|---|---|---|---|---|"]
    for target in wanted:
        entry = record.get(target.part)
        value = target.reached(entry["found"]) if entry and "rows" in entry["found"] else None
        shown = NOT_MEASURED if value is None else f"{value:.3g}"
        verdict = "" if value is None else "met" if target.is_met(value) else "**missed**"
        bound = f"{'at most' if target.at_most else 'at least'} {target.bound:g}"
        commit = entry["conditions"]["commit"] if entry and value is not None else ""
        lines.append(f"| {target.part} | {target.what} | {bound} | {shown} | {verdict} | {commit} |")
    return "\n".join(lines)


def part(name: str, entry: dict[str, Any]) -> str:
    """A table of its rows, under its conditions."""
    found = entry["found"]
    head = f"### {name}\n\n{described(entry['conditions'])}"
    if "copy_bytes_per_s" in found:
        copy, product = found["copy_bytes_per_s"] / 1e12, found["bf16_flop_per_s"] / 1e12
        head += f"; copy {copy:.2f} TB/s, bf16 product {product:.0f} TFLOP/s"
    if "rows" not in found:
        return f"{head}\n\n{NOT_MEASURED}: {why_unfinished(found)}"
    table = profile_table(found) if name == PROFILE else contenders_table(found)
    return f"{head}\n\n{table}"


def contenders_table(found: Found) -> str:
    share = part_of_copy(found)
    lines = [
        "| | ms, median | p20 | p80 | times ours, median of rounds | peak memory | error | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        p20, p50, p80 = (f"{value:.4f}" for value in row["ms"]) if "ms" in row else ("", NOT_MEASURED, "")
        ratio = f"{row['times_ours']:.2f}" if row.get("times_ours") else ""
        memory = "" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / 2**20:.1f} MiB"
        error = f"{row['error']:.1e}" if "error" in row else ""
        remark = cell(row.get(NOT_MEASURED, ""))
        if row["contender"] == "ours" and share is not None:
            above = found["units"] / share / found["fewest_units"]
            remark = f"{share:.0%} of the copy's bytes/s over {found['units']} units"
            remark += f", {above:.1f} times that of {found['fewest_units']}"
        lines.append(f"| {row['contender']} | {p50} | {p20} | {p80} | {ratio} | {memory} | {error} | {remark} |")
    return "\n".join(lines)


def profile_table(found: Found) -> str:
    if not found["rows"]:
        return f"{NOT_MEASURED}: no GPU"
    lines = ["| kernel | launches a call | us a call | TB/s of what it reads and writes |", "|---|---|---|---|"]
    for row in found["rows"]:
        rate = f"{row['bytes_per_s'] / 1e12:.2f}" if "bytes_per_s" in row else ""
        name = row["kernel"].replace("|", "/")[:80]
        lines.append(f"| {name} | {row['launches']:g} | {row['us']:.1f} | {rate} |")
    return "\n".join(lines)
