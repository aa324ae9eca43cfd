"""The stage `tune`: launch configurations of the passes over the inputs, measured; kernels/launch.py stays as it is.
gpu_tune_slots.py does the same for the kernels over the slots, gpu_orders.py for the order of a call's launches.

For each shape and each `which` of launch.py, every combination of BLOCK_N, warps, stages, most registers of a thread
and programs a multiprocessor is held against the sums of the table's own configuration and timed as a CUDA graph,
interleaved with it; so is that configuration with the other way to a block outside of dots. bfloat16, D_in = 64, T = 3.
The compiler takes most of the time: what SECONDS do not suffice for is not tried.
"""

import itertools
import statistics
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import gpu_orders, gpu_table, gpu_tune_slots
from .compile_ahead import compile_ahead
from .gpu_record import UNFINISHED, Found, Part, Record, described, why_unfinished
from .measure import Call, in_graph, milliseconds, on_gpu
from .patched import patched
from .reasons import NOT_MEASURED, cell, failed

WIDTH, ITERS, ROUNDS = 64, 3, 15
PASSES = ("first", "forward", "query", "inputs")
TILED = ("first", "inputs")  # those that need a block outside of dots
BLOCKS, WARPS, STAGES, PROGRAMS = (128, 64, 256, 32), (4, 8), (3, 2), (2, 3, 4, 8)
REGISTERS = (None, 128, 168) if torch.version.hip is None else (None,)  # 4 and 3 programs of 4 warps on sm_90
SECONDS = 60.0  # of a part, compiling and checking
GAIN = 1.03  # less is noise
SHOWN = "block, warps, stages, splits, most registers, by dot"
TOY_SIZES, TOY_CANDIDATES = ((2, 70, 3),), 2
Config = Any  # AttendConfig of kernels/launch.py, which is imported after the interpreter is switched on or off


def parts(toy: bool) -> dict[str, Part]:
    """The quickest first."""
    passes = {
        f"{' x '.join(map(str, size))} {which}": partial(tune, size, which, toy)
        for size in (TOY_SIZES if toy else gpu_table.SIZES)
        for which in PASSES
    }
    return gpu_orders.parts(toy) | gpu_tune_slots.parts(toy) | passes


def candidates(base: Config, B: int, N: int, multiprocessors: int, which: str) -> list[Config]:
    """The table's configuration first, then all others that differ in what is tuned."""
    found = [base] + [base._replace(by_dot=not base.by_dot)] * (which in TILED)
    tuned = itertools.product(BLOCKS, WARPS, STAGES, REGISTERS, PROGRAMS)
    for block_n, num_warps, num_stages, max_registers, programs in tuned:
        tiles = -(-N // block_n)
        blocks = -(-tiles // max(1, min(tiles, programs * multiprocessors // B)))
        found.append(
            base._replace(
                block_n=block_n,
                num_warps=num_warps,
                num_stages=num_stages,
                max_registers=max_registers,
                blocks=blocks,
                splits=-(-tiles // blocks),
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
    base = attend_config(B, N, WIDTH, K, 1, 2, multiprocessors, which, ops.hopper(device))
    configs = candidates(base, B, N, multiprocessors, which)[: 1 + TOY_CANDIDATES if toy else None]
    call = problem(size, which, device)
    expected = [x.clone() for x in configured(call, base)()]
    own_calls = [configured(call, config) for config in configs]
    seconds = min(SECONDS, 0.6 * seconds)
    rows, calls, until = [], {}, time.monotonic() + seconds
    compile_ahead(own_calls, 0.5 * seconds)
    for number, (config, own) in enumerate(zip(configs, own_calls, strict=True)):
        row: dict[str, Any] = config._asdict()
        rows.append(row)
        if time.monotonic() > until:
            row[NOT_MEASURED] = "no time left"
            continue
        try:
            found = own()
            error = row["error"] = max(((x - y).norm() / y.norm()).item() for x, y in zip(found, expected, strict=True))
            if error <= 1e-2:
                calls[str(number)] = in_graph(own)
            else:
                row[NOT_MEASURED] = f"off by {error:.1e} of the norm"
        except Exception as failure:  # too much shared memory, too many registers
            row[NOT_MEASURED] = failed(failure)
    failures: dict[Any, str] = {}
    for number, values in milliseconds(calls, 1 if toy else ROUNDS, failures=failures).items():
        if values:
            rows[int(number)]["ms"] = statistics.median(values)
    for number, why in failures.items():
        rows[int(number)][NOT_MEASURED] = why
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


def configured(call: Call, config: Config) -> Call:
    """With this configuration in place of the table's."""
    from slotattn_fast.kernels import ops

    return patched(call, ops, "attend_config", lambda *sizes: config)


def passed(record: Record) -> bool:
    """Whether the table's own configurations ran."""
    return all(NOT_MEASURED not in row for entry in record.values() for row in entry["found"].get("rows", [])[:1])


def report(record: Record) -> str:
    """Markdown: for each shape and pass the table's configuration, the best, and whether it is worth a change."""
    lines = [
        f"| B x N x K, pass | launch.py: {SHOWN} | ms | best: {SHOWN} | ms | gain | proposed |",
        "|---|---|---|---|---|---|---|",
    ]
    of_slots = {name: entry for name, entry in record.items() if name.split()[-1] in gpu_tune_slots.KERNELS}
    of_orders = {name: entry for name, entry in record.items() if name.startswith(gpu_orders.NAME)}
    for name, entry in record.items():
        if name in of_slots or name in of_orders:
            continue
        if UNFINISHED in entry["found"]:
            lines.append(f"| {name} | | {NOT_MEASURED}: {cell(why_unfinished(entry['found']))} | | | | |")
            continue
        rows = entry["found"]["rows"]
        timed = [row for row in rows if "ms" in row]
        if "ms" not in rows[0]:
            why = cell(rows[0].get(NOT_MEASURED, "no GPU"))
            lines.append(f"| {name} | {shown(rows[0])} | {NOT_MEASURED}: {why} | | | | |")
            continue
        best = min(timed, key=lambda row: row["ms"])
        gain = rows[0]["ms"] / best["ms"]
        lines.append(
            f"| {name} | {shown(rows[0])} | {rows[0]['ms']:.4f} | {shown(best)} | {best['ms']:.4f} | {gain:.2f}x "
            f"| {'yes' if gain >= GAIN else 'no'} |"
        )
    where = sorted({described(entry["conditions"]) for entry in record.values()})
    tables = [gpu_orders.report(of_orders), "\n".join(lines), gpu_tune_slots.report(of_slots), "\n".join(where)]
    return "\n\n".join(tables) + "\n"


def shown(row: dict[str, Any]) -> str:
    numbers = (row[name] or "-" for name in ("block_n", "num_warps", "num_stages", "splits", "max_registers"))
    return ", ".join([*map(str, numbers), "yes" if row["by_dot"] else "no"])
