"""The report of the stage `steps`: each target beside what was reached, all contenders, and the parts of a step."""

from typing import Any

from .gpu_record import Found, Record, described, why_unfinished
from .gpu_table import Target, median, targets, times_faster
from .reasons import NOT_MEASURED, cell

CLEVR6, SETS, CONVOLUTIONS = "clevr6", "clevr10 properties", "transposed convolutions"  # parts
GRAPH = "ours, bf16, graph"


def hours(ms: float, steps: int) -> float:
    """Of a whole run of such steps, without what else a run does."""
    return ms * steps / 3.6e6


def reached_hours(found: Found) -> float | None:
    ms = median(found, GRAPH)
    return None if ms is None else hours(ms, found["steps"])


def memory_share(found: Found) -> float | None:
    """Peak memory of the graph's step over the plain loop's."""
    peaks = {row["contender"]: row.get("peak_bytes") for row in found["rows"]}
    plain, own = peaks.get("plain"), peaks.get(GRAPH)
    return own / plain if own is not None and plain else None


TARGETS = (
    Target(CLEVR6, "times faster than the plain loop", 4, times_faster("plain", GRAPH)),
    Target(CLEVR6, "than the plain model in bf16, compiled", 1.3, times_faster("plain, bf16, compiled", GRAPH)),
    Target(CLEVR6, "hours for 500000 steps", 5, reached_hours, at_most=True),
    Target(CLEVR6, "peak memory over the plain loop's", 0.5, memory_share, at_most=True),
    Target(SETS, "times faster than the plain loop, matching by SciPy", 4, times_faster("plain", GRAPH)),
    Target(SETS, "hours for 150000 steps", 1, reached_hours, at_most=True),
)


def report(record: Record) -> str:
    """Markdown."""
    heading = f"a step of the paper's batch: {GRAPH}"
    return "\n\n".join([targets(record, TARGETS, heading), *(part(*item) for item in record.items())]) + "\n"


def part(name: str, entry: dict[str, Any]) -> str:
    """Its tables, under its conditions."""
    found = entry["found"]
    head = f"### {name}\n\n{described(entry['conditions'])}"
    if "rows" not in found:
        return f"{head}\n\n{NOT_MEASURED}: {why_unfinished(found)}"
    tables = [layers_table(found)] if name == CONVOLUTIONS else [contenders_table(found), parts_table(found)]
    return "\n\n".join([head, *tables])


def contenders_table(found: Found) -> str:
    lines = [
        f"| a step of batch {found['batch']} | ms, median | p20 | p80 | faster than plain, median of rounds "
        f"| peak memory | hours for {found['steps']} steps | error | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        p20, p50, p80 = times(row)
        faster = f"{row['faster']:.2f}" if "faster" in row else ""
        memory = "" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / 2**20:.0f} MiB"
        whole = f"{hours(row['ms'][1], found['steps']):.1f}" if "ms" in row else ""
        cells = (row["contender"], p50, p20, p80, faster, memory, whole, shown_error(row), remark(row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parts_table(found: Found) -> str:
    """Milliseconds by part, a column for each contender."""
    names = list(found["parts"])
    lines = [f"| part, ms | | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for rows in zip(*found["parts"].values(), strict=True):
        cells = [NOT_MEASURED if row["ms"] is None else f"{row['ms']:.3f}" for row in rows]
        lines.append(f"| {rows[0]['part']} | {rows[0]['direction']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def layers_table(found: Found) -> str:
    lines = [
        "| forward and backward | | ms, median | p20 | p80 | output | error | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        p20, p50, p80 = times(row)
        order = "channels-last" if row["channels_last"] else "to be copied"
        cells = (row["layer"], row["contender"], p50, p20, p80, order, shown_error(row), remark(row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def times(row: dict[str, Any]) -> tuple[str, str, str]:
    """p20, p50, p80"""
    if "ms" not in row:
        return "", NOT_MEASURED, ""
    p20, p50, p80 = (f"{value:.3f}" for value in row["ms"])
    return p20, p50, p80


def shown_error(row: dict[str, Any]) -> str:
    return f"{row['error']:.1e}" if "error" in row else ""


def remark(row: dict[str, Any]) -> str:
    return cell(row.get(NOT_MEASURED, ""))
