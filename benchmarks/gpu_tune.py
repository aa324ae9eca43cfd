"""The stage `tune`: launch configurations of the passes over the inputs, measured; kernels/launch.py stays as it is.
gpu_tune_slots.py does the same for the kernels over the slots.

For each shape and each `which` of launch.py, every combination of BLOCK_N, warps, stages and programs a multiprocessor
is held against the sums of the table's own configuration and timed, interleaved with it. bfloat16, D_in = 64, T = 3.
"""

import itertools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import gpu_table, gpu_tune_slots
from .gpu_record import Found, Part, Record, described
from .measure import Call, milliseconds, on_gpu
from .reasons import NOT_MEASURED, failed

WIDTH, ITERS, ROUNDS = 64, 3, 15
PASSES = ("first", "forward", "query", "inputs")
BLOCKS, WARPS, STAGES, PROGRAMS = (32, 64, 128, 256), (4, 8), (2, 3, 4), (2, 4, 8)
GAIN = 1.03  # less is noise
TOY_SIZES, TOY_CANDIDATES = ((2, 70, 3),), 2
Config = Any  # AttendConfig of kernels/launch.py, which is imported after the interpreter is switched on or off


def parts(toy: bool) -> dict[str, Part]:
    return {
        f"{' x '.join(map(str, size))} {which}": partial(tune, size, which, toy)
        for size in (TOY_SIZES if toy else gpu_table.SIZES)
        for which in PASSES
    } | gpu_tune_slots.parts(toy)


def candidates(base: Config, B: int, N: int, multiprocessors: int) -> list[Config]:
    """The table's configuration first, then all others that differ in what is tuned."""
    found = [base]
    for block_n, num_warps, num_stages, programs in itertools.product(BLOCKS, WARPS, STAGES, PROGRAMS):
        tiles = -(-N // block_n)
        blocks = -(-tiles // max(1, min(tiles, programs * multiprocessors // B)))
        found.append(
            base._replace(
                block_n=block_n, num_warps=num_warps, num_stages=num_stages, blocks=blocks, splits=-(-tiles // blocks)
            )
        )
    return list(dict.fromkeys(found))


def tune(size: tuple[int, int, int], which: str, toy: bool, seconds: float) -> Found:
    """Rows, one for each candidate: what it is, and milliseconds or why there are none."""
    from slotattn_fast.kernels import ops
    from slotattn_fast.kernels.launch import attend_config

    B, N, K = size
    device = torch.device("cuda" if on_gpu() else "cpu")
    multiprocessors = ops.multiprocessors(device)
    base = attend_config(B, N, WIDTH, K, 1, 2, multiprocessors, which)
    configs = candidates(base, B, N, multiprocessors)[: 1 + TOY_CANDIDATES if toy else None]
    call = problem(size, which, device)
    with launched_as(base):
        expected = [x.clone() for x in call()]
    rows, calls = [], {}
    for number, config in enumerate(configs):
        row: dict[str, Any] = config._asdict()
        rows.append(row)
        try:
            found = configured(call, config)()
        except Exception as failure:  # too much shared memory, too many registers
            row[NOT_MEASURED] = failed(failure)
            continue
        error = row["error"] = max(((x - y).norm() / y.norm()).item() for x, y in zip(found, expected, strict=True))
        if error <= 1e-2:
            calls[str(number)] = configured(call, config)
        else:
            row[NOT_MEASURED] = f"off by {error:.1e} of the norm"
    for number, values in milliseconds(calls, 1 if toy else ROUNDS).items():
        if values:
            rows[int(number)]["ms"] = statistics.median(values)
    return {"rows": rows}


def problem(size: tuple[int, int, int], which: str, device: torch.device) -> Call:
    """A pass over random inputs, which returns its sums over the splits and the gradient to the inputs in float32."""
    from slotattn_fast.kernels import ops
    from slotattn_fast.kernels.arguments import Settings

    B, N, K = size
    torch.manual_seed(0)
    s = Settings(ITERS, 1, 1e-8, 1e-5, "mean", "numerator", True)
    x = torch.randn(B, N, WIDTH, device=device).bfloat16()
    queries, d_sums = (torch.randn(ITERS, B, 1, K, WIDTH + 1, device=device) for _ in range(2))
    queries *= WIDTH**-0.5
    stats = torch.stack([torch.zeros(B, N, device=device), torch.ones(B, N, device=device)])
    if which in ("first", "forward"):
        return lambda: [ops.attend_forward(x, None, None, queries[0], stats, s, first=which == "first").sum(0)]
    if which == "query":
        return lambda: [ops.attend_backward(x, None, None, queries[:1], d_sums[:1], stats, s, None).sum(0)]
    d_x = torch.empty_like(x)

    def inputs_pass() -> list[Tensor]:
        return [ops.attend_backward(x, None, None, queries, d_sums, stats, s, d_x).sum(0), d_x]

    return inputs_pass


@contextmanager
def launched_as(config: Config) -> Iterator[None]:
    """With this configuration in place of the table's."""
    from slotattn_fast.kernels import ops

    table = ops.attend_config
    ops.attend_config = lambda *sizes: config
    try:
        yield
    finally:
        ops.attend_config = table


def configured(call: Call, config: Config) -> Call:
    def run() -> Any:
        with launched_as(config):
            return call()

    return run


def passed(record: Record) -> bool:
    """Whether the table's own configurations ran."""
    return all(NOT_MEASURED not in row for entry in record.values() for row in entry["found"].get("rows", [])[:1])


def report(record: Record) -> str:
    """Markdown: for each shape and pass the table's configuration, the best, and whether it is worth a change."""
    lines = [
        "| B x N x K, pass | launch.py: block, warps, stages, splits | ms | best: block, warps, stages, splits | ms "
        "| gain | proposed |",
        "|---|---|---|---|---|---|---|",
    ]
    of_slots = {name: entry for name, entry in record.items() if name.split()[-1] in gpu_tune_slots.KERNELS}
    for name, entry in record.items():
        if name in of_slots:
            continue
        rows = entry["found"].get("rows", [])
        timed = [row for row in rows if "ms" in row]
        if not timed or "ms" not in rows[0]:
            lines.append(f"| {name} | {shown(rows[0]) if rows else ''} | not measured | | | | |")
            continue
        best = min(timed, key=lambda row: row["ms"])
        gain = rows[0]["ms"] / best["ms"]
        lines.append(
            f"| {name} | {shown(rows[0])} | {rows[0]['ms']:.4f} | {shown(best)} | {best['ms']:.4f} | {gain:.2f}x "
            f"| {'yes' if gain >= GAIN else 'no'} |"
        )
    where = sorted({described(entry["conditions"]) for entry in record.values()})
    return "\n".join([*lines, "", gpu_tune_slots.report(of_slots), "", *where, ""])


def shown(row: dict[str, Any]) -> str:
    return f"{row['block_n']}, {row['num_warps']}, {row['num_stages']}, {row['splits']}"
