"""Time of matching a batch of predictions with their targets: ours, and a loop of SciPy over the problems.

    python -m benchmarks.matching [--rounds 15] [--out benchmarks/results]

Costs as in set prediction: the mean Huber loss over 19 features of random predictions and random targets, half of which
are zero rows. On a CPU ours is SciPy, too, and what is measured is what it adds. On a GPU the loop is given a copy of
the costs, and its pairs are copied back; times there are by CUDA events, of ours also as a CUDA graph. All contenders
are checked to cost the same and are then timed in turns in one process; the table gives medians over the rounds, with
the 20th and 80th percentile, and those of the rounds' ratios. Writes matching-cpu.csv or matching-gpu.csv, a row a
measurement, and a .md of that name, which also goes into benchmarks/README.md where it has a place for it.
"""

import argparse
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.conditions import add_out, at_least, command, software, write_results
from benchmarks.measure import Call, captured, device_name, on_gpu, wall_times
from benchmarks.spread import cell, columns, ratio_cell, ratios
from slotattn_fast.matching import match

Row = dict[str, Any]

SHAPES = ((512, 10, 10), (512, 32, 32), (512, 10, 32))  # B, targets, predictions; the first is set prediction's
FEATURES = 19
LOOP = "SciPy in a loop"


def make_costs(B: int, R: int, C: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    targets, predictions = (torch.rand(B, n, FEATURES, generator=generator) for n in (R, C))
    targets[:, R // 2 :] = 0
    pairs = torch.broadcast_tensors(predictions[:, None], targets[:, :, None])
    return F.huber_loss(*pairs, reduction="none").mean(-1)


def by_loop(cost: Tensor) -> tuple[Tensor, Tensor]:
    from scipy.optimize import linear_sum_assignment  # where `command` tells that it is missing

    pairs = [linear_sum_assignment(problem) for problem in cost.cpu().numpy()]
    rows, columns = torch.from_numpy(np.stack(pairs, 1)).to(cost.device)
    return rows, columns


def contenders(cost: Tensor) -> dict[str, Call]:
    calls: dict[str, Call] = {
        LOOP: lambda: by_loop(cost),
        "match": lambda: match(cost),
        "match, unchecked": lambda: match(cost, check=False),
    }
    if on_gpu():
        calls["match, unchecked, CUDA graph"] = captured(lambda: match(cost, check=False))
    return calls


def measure(shape: tuple[int, int, int], rounds: int) -> list[Row]:
    cost = make_costs(*shape).to("cuda" if on_gpu() else "cpu")
    calls = contenders(cost)
    each = torch.arange(len(cost), device=cost.device)[:, None]
    sums = {name: cost.double()[each, *call()].sum(1) for name, call in calls.items()}
    for name, found in sums.items():
        torch.testing.assert_close(found, sums[LOOP], rtol=1e-14, atol=0, msg=f"{name}: costs more than SciPy")
    times = wall_times(calls, rounds)
    rows = []
    for name, values in times.items():
        row = dict(zip(("B", "rows", "columns"), shape, strict=True)) | {"contender": name}
        row |= columns("ms", values, 4) | ratios("times_faster", times[LOOP], values)
        print(row, flush=True)
        rows.append(row)
    return rows


def table(rows: list[Row], path: Path) -> str:
    """Markdown: a line for each measurement."""
    first = rows[0]
    lines = [
        f"{first['processor']}, 1 thread, torch {first['torch']}, SciPy {first['scipy']}, Triton {first['triton']}, "
        f"float32, medians of {first['rounds']} interleaved rounds (20th to 80th percentile), "
        f"commit {first['commit']}, {first['date']}: `{first['command']}`, {path}.",
        "",
        "| problems | targets x predictions | contender | ms, all problems | faster |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        size, faster = f"{row['rows']} x {row['columns']}", ratio_cell(row, "times_faster", ".2f")
        lines.append(f"| {row['B']} | {size} | {row['contender']} | {cell(row, 'ms', '.2f')} | {faster} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(2), default=15, help="timed rounds of each measurement")
    add_out(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = "gpu" if on_gpu() else "cpu"
    conditions = {
        "device": device,
        "processor": device_name(),
        "rounds": arguments.rounds,
        **software("torch", "triton", "scipy", "numpy"),
    }
    found = accumulate(measure(shape, arguments.rounds) for shape in SHAPES)
    write_results(f"matching-{device}", found, conditions, table, arguments.out)


if __name__ == "__main__":
    command(main)
