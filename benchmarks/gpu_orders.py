"""Parts of the stage `tune`: the orders of a call's launches that `call_config` of kernels/launch.py can give.

A launch for each pass over all images, which is the one taken; groups of images whose inputs stay in the L2 cache over
all passes; and forward, where an image fits on the chip, all iterations in one launch. Whole calls in bfloat16, D = 64,
T = 3, captured as CUDA graphs, held against the reference in float64 and timed in turns.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from . import contenders, gpu_table
from .contenders import PASSES, Problem, agreeing, problem
from .cost import Shape
from .gpu_record import UNFINISHED, Found, Part, Record, why_unfinished
from .measure import Call, in_graph, on_gpu, time_rows
from .patched import patched
from .reasons import NOT_MEASURED, cell

NAME = "order of launches"
DIM, ITERS, ROUNDS = 64, 3, 30
REFERENCE, PASS_BY_PASS, ON_CHIP = "reference", "a launch a pass", "forward on the chip"
TOY_SIZES, TOY_CACHE = ((3, 40, 3),), 4 * 40 * DIM * 2  # bytes: two images in half of it


def parts(toy: bool) -> dict[str, Part]:
    sizes = TOY_SIZES if toy else (gpu_table.SETS, gpu_table.DISCOVERY)
    return {
        f"{NAME}, {' x '.join(map(str, size))} {which}": partial(compare, size, which, toy)
        for size in sizes
        for which in PASSES
    }


def orders(B: int, N: int, K: int, cache_bytes: int, hopper: bool) -> dict[str, Any]:
    """The `CallConfig` of each order that differs at this shape; the one that is taken comes first."""
    from slotattn_fast.kernels.launch import CallConfig, call_config, fits_on_chip, images_in_cache

    itemsize = torch.bfloat16.itemsize
    found = {PASS_BY_PASS: call_config(B)}
    in_cache = images_in_cache(N, DIM, itemsize, cache_bytes)
    for group in (in_cache, 2 * in_cache):
        if group < B:
            found[f"groups of {group}"] = CallConfig(group, on_chip=False)
    if fits_on_chip(N, DIM, K, 1, DIM, 2 * DIM, itemsize, hopper):
        found[ON_CHIP] = CallConfig(B, on_chip=True)
    return found


def compare(size: tuple[int, int, int], which: str, toy: bool, seconds: float) -> Found:
    """Rows, one for each order: its error, and milliseconds or why there are none."""
    from slotattn_fast.kernels.device import hopper

    B, N, K = size
    given = problem(Shape(B, N, DIM, K, DIM, ITERS, torch.bfloat16), which)
    cache = torch.cuda.get_device_properties(given.device).L2_cache_size if on_gpu() else TOY_CACHE
    makers: dict[str, Callable[[], Call]] = {REFERENCE: partial(contenders.make, "reference", given)}
    for name, config in orders(B, N, K, cache, hopper(given.device)).items():
        makers[name] = partial(in_order, given, config)
    calls, rows = agreeing(given, makers)
    calls.pop(REFERENCE, None)  # it tells what error is allowed
    time_rows(rows, calls, 1 if toy else ROUNDS, PASS_BY_PASS)
    return {"rows": [row for row in rows if row["contender"] != REFERENCE]}


def in_order(given: Problem, config: Any) -> Call:
    from slotattn_fast import triton_backend

    return in_graph(patched(contenders.make("triton", given), triton_backend, "call_config", lambda B: config))


def report(record: Record) -> str:
    """Markdown: a line for each order."""
    lines = [
        f"| {NAME}, B x N x K, what is called | | ms, median | p20 | p80 | faster, median of rounds | error | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in record.items():
        what = name.removeprefix(f"{NAME}, ")
        if UNFINISHED in entry["found"]:
            lines.append(f"| {what} | | {NOT_MEASURED} | | | | | {cell(why_unfinished(entry['found']))} |")
            continue
        for row in entry["found"]["rows"]:
            p20, p50, p80 = (f"{value:.4f}" for value in row["ms"]) if "ms" in row else ("", NOT_MEASURED, "")
            faster = f"{row['faster']:.2f}" if "faster" in row else ""
            error = f"{row['error']:.1e}" if "error" in row else ""
            cells = (what, row["contender"], p50, p20, p80, faster, error, cell(row.get(NOT_MEASURED, "")))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
