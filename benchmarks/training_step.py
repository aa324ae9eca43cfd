"""Time and memory of one training step of either task: what discovery.py and property.py do alike.

Who steps, and how all are held against the plain loop in float64: benchmarks/step_contenders.py. Those that agree step
in turns in one process, every round through all presets, in any order; the table gives medians over the rounds, and
those of the ratios in each round, with the 20th and 80th percentile. The parts of a step are timed one by one, each
from the detached outputs of the part before.

Peak memory is what a first step holds at most beyond what it is given, on a CPU Adam's state included. There it is the
growth of the resident set, in a fresh process for each contender. FLOPs are those that PyTorch's counter sees: not the
1 to 3 % of them inside our operator of Slot Attention. "product" is the rate of a float32 matrix product, the best that
was found: two are timed beside the steps of every preset in every round. On a GPU batches are the paper's, and
`torch.compile` of both is compared too. Exits with 1 where ours is wrong or fails. Writes TASK-cpu.csv (or -cuda), a
row a measurement, and TASK-cpu.md, which also goes into benchmarks/README.md where it has a place.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import spread
from benchmarks.conditions import add_quick_out, add_threads, at_least, chosen_out, software, write_results
from benchmarks.measure import (
    WARM_UP,
    device_name,
    give_memory_back,
    in_any_order,
    in_fresh_process,
    on_gpu,
    peak_bytes,
    resident_growth,
    wall_times,
)
from benchmarks.reasons import NOT_MEASURED, cell, failed
from benchmarks.step_contenders import ON_CPU, ON_GPU, OURS, PLAIN, Contender, Step, agreeing
from slotattn_fast.train.config import PRESETS

Row = dict[str, Any]


def peak_mib(kind: type[Step], contender: Contender, preset: str, batch: int, threads: int) -> float:
    """On a CPU in a fresh process: what was freed before is not seen twice."""
    if on_gpu():
        return (peak_bytes(kind(contender, preset, batch)) or 0) / 2**20
    modules = ("benchmarks.training_step", kind.fast_class.__module__)
    return in_fresh_process(_peak_mib_here, kind, contender, preset, batch, threads, preloaded=modules)


def _peak_mib_here(kind: type[Step], contender: Contender, preset: str, batch: int, threads: int) -> float:
    torch.set_num_threads(threads)
    give_memory_back()
    kind(contender, preset, 1)()  # what is loaded on first use is not the step's
    step = kind(contender, preset, batch)
    return resident_growth(step)[0]


def gflop(step: Step) -> float:
    with FlopCounterMode(display=False) as counter:
        step.gradients()
    return counter.get_total_flops() / 1e9


def product_gflops() -> float:
    """Of a float32 matrix product, the best of two."""
    left, right = (torch.randn(2048, 2048, device="cuda" if on_gpu() else "cpu") for _ in range(2))
    seconds = min(wall_times({"product": lambda: left @ right}, 2, warm_up=1)["product"]) / 1000
    return 2 * 2048**3 / seconds / 1e9


class Measured:
    """What is measured of a preset: the steps, and the parts of those without bf16 or compilation."""

    def __init__(self, kind: type[Step], preset: str, batch: int, threads: int) -> None:
        self.preset, self.batch = preset, batch
        contenders = {each: partial(kind, each, preset, batch) for each in (ON_GPU if on_gpu() else ON_CPU)}
        self.steps, self.notes = agreeing(kind, preset, batch, contenders)
        for contender, step in self.steps.items():
            step.optimizer.step()  # in which Adam makes its state
            try:
                self.notes[contender]["peak_mib"] = round(peak_mib(kind, contender, preset, batch, threads), 1)
            except Exception as failure:  # as when the system ends the process
                print(f"{preset}, {contender}: peak memory {NOT_MEASURED}: {failed(failure)}", file=sys.stderr)
            if contender in (PLAIN, OURS):  # what is compiled is not seen, and a precision changes nothing
                self.notes[contender]["gflop"] = round(gflop(step), 1)
        self.times: dict[Contender, list[float]] = {contender: [] for contender in self.steps}
        self.parts: dict[Contender, list[dict[tuple[str, str], float]]] = {
            contender: [] for contender in (PLAIN, OURS) if contender in self.steps
        }

    def go_round(self, number: int) -> None:
        """Every step once, in any order, then their parts; at first, on a GPU, after some that are not counted.

        On a CPU, where a step takes seconds, what held it against float64 was its warm-up.
        """
        warm_up = WARM_UP if on_gpu() and not number else 0
        failures: dict[Contender, str] = {}
        for contender, found in wall_times(self.steps, 1, warm_up, failures).items():
            self.times[contender] += found
        for contender in in_any_order(self.parts):
            try:
                timed = [self.steps[contender].parts() for _ in range(warm_up + 1)]
            except Exception as failure:
                failures[contender] = failed(failure)
            else:
                self.parts[contender].append(timed[-1])
        for contender, why in failures.items():
            self.notes[contender][NOT_MEASURED] = why
            for measured in (self.steps, self.times, self.parts):
                measured.pop(contender, None)

    def rows(self) -> list[Row]:
        rows = []
        for contender, note in self.notes.items():
            head = self.row(contender, "step", "step")
            if values := self.times.get(contender):
                head |= spread.columns("ms", values, 4)
                if plain := self.times.get(PLAIN):
                    head |= spread.ratios("faster", plain, values)
            rows.append(head | note | {"error": f"{note['error']:.1e}" if "error" in note else ""})
        for contender, timed in self.parts.items():
            for part, direction in timed[0]:
                values = [1000 * seconds[part, direction] for seconds in timed]
                rows.append(self.row(contender, part, direction) | spread.columns("ms", values, 4))
        return rows

    def row(self, contender: Contender, part: str, direction: str) -> Row:
        """Every column that is still empty too."""
        empty = (*spread.names("ms"), *spread.names("faster"), "peak_mib", "gflop", "error", NOT_MEASURED)
        head = {"preset": self.preset, "batch": self.batch, "contender": str(contender), "part": part}
        return {**head, "pass": direction, **dict.fromkeys(empty, "")}


def measure(kind: type[Step], batches: Mapping[str, int], rounds: int, threads: int) -> Iterator[list[Row]]:
    """The rows of all presets, after every round but the first those of the rounds so far."""
    presets = [Measured(kind, preset, batch, threads) for preset, batch in batches.items()]
    product = 0.0
    for number in range(rounds):
        for preset in presets:
            product = max(product, product_gflops())
            preset.go_round(number)
        if number:
            more = {"rounds": number + 1, "product_gflops": round(product)}
            yield [row | more for preset in presets for row in preset.rows()]


def table(rows: list[Row], path: Path) -> str:
    """Markdown: the steps, and their parts."""
    first = rows[0]
    lines = [
        f"{first['device']}, {first['threads']} threads, torch {first['torch']}, medians of {first['rounds']} "
        f"interleaved rounds (20th to 80th percentile), product {first['product_gflops']} GFLOP/s, commit "
        f"{first['commit']}, {first['date']}: `{first['command']}`, {path}.",
        "",
        "| preset | batch | | a step | faster than plain | peak memory | of the plain loop's | GFLOP | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    steps = [r for r in rows if r["part"] == "step"]
    plain_peak = {r["preset"]: r["peak_mib"] for r in steps if r["contender"] == str(PLAIN)}
    for r in steps:
        if r[NOT_MEASURED]:
            lines.append(f"| {r['preset']} | {r['batch']} | {r['contender']} | {cell(r[NOT_MEASURED])} |" + " |" * 5)
            continue
        faster = "" if r["contender"] == str(PLAIN) else spread.ratio_cell(r, "faster")
        peak = f"{r['peak_mib']:.0f} MiB" if r["peak_mib"] else ""
        share = f"{r['peak_mib'] / plain_peak[r['preset']]:.2f}" if peak and plain_peak[r["preset"]] else ""
        lines.append(
            f"| {r['preset']} | {r['batch']} | {r['contender']} "
            f"| {spread.cell(r, 'ms', '.0f', 'ms')} | {faster} "
            f"| {peak} | {share} | {r['gflop']} | {r['error']} |"
        )
    presets = list(plain_peak)
    lines += ["", "Milliseconds by part, ours / plain:", "", f"| part | pass | {' | '.join(presets)} |"]
    lines.append("|---|---|" + "---|" * len(presets))
    ms = {(r["preset"], r["contender"], r["part"], r["pass"]): f"{r['ms_median']:.1f}" for r in rows if r["ms_median"]}
    for part, direction in dict.fromkeys((r["part"], r["pass"]) for r in rows if r["part"] != "step"):
        cells = (" / ".join(ms.get((p, str(c), part, direction), "-") for c in (OURS, PLAIN)) for p in presets)
        lines.append(f"| {part} | {direction} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(kind: type[Step], batches: Mapping[str, int], quick: Mapping[str, int], description: str | None) -> None:
    """The command of a task: `batches` by preset on a CPU, and the small ones of --quick."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches")
    parser.add_argument("--rounds", type=at_least(2), help="timed rounds of each step (default 5; with --quick 3)")
    add_threads(parser)
    add_quick_out(parser)
    arguments = parser.parse_args()
    out = chosen_out(arguments)
    torch.set_num_threads(arguments.threads)
    where = "cuda" if on_gpu() else "cpu"
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    conditions = {
        **software("torch"),
        "where": where,
        "device": device_name(),
        "threads": arguments.threads,
    }
    if arguments.quick:
        batches = quick
    elif on_gpu():
        batches = {preset: PRESETS[kind.task][preset].batch_size for preset in batches}
    found = measure(kind, batches, rounds, arguments.threads)
    rows = write_results(f"{kind.task}-{where}", found, conditions, table, out)
    if any(row[NOT_MEASURED] for row in rows if row["contender"].startswith(OURS.model)):
        sys.exit(1)
