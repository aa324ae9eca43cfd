"""Measuring: interleaved rounds, captured graphs, peak memory, and the machine's ceilings, on a GPU or on a CPU."""

import ctypes
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from multiprocessing.connection import Connection
from operator import truediv
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reasons import NOT_MEASURED, failed
from .spread import percentiles

Call = Callable[[], Sequence[Tensor]]
WARM_UP = 3  # rounds
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


class Sample(NamedTuple):
    """One timed call."""

    ms: float
    """Milliseconds from its start to its end, on a GPU by its events."""
    cpu_ms: float
    """Milliseconds that this process' threads computed meanwhile, together."""


class Rates(NamedTuple):
    """What the machine gives at most."""

    copy_bytes_per_s: float
    """Read and written, of a copy within memory."""
    flop_per_s: float
    """Of a matrix product."""


def on_gpu() -> bool:
    """Whether kernels run on a GPU: there is one, and they are not interpreted."""
    return torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"


def device_name() -> str:
    """The GPU's, or the processor's."""
    from slotattn_fast.train.environment import processor

    return torch.cuda.get_device_name() if on_gpu() else processor()


def samples(
    calls: Mapping[Any, Callable[[], Any]],
    rounds: int,
    warm_up: int = WARM_UP,
    failures: dict[Any, str] | None = None,
) -> dict[Any, list[Sample]]:
    """Of every call in every round, one after the other, after `warm_up` rounds that are not counted.

    Each round draws its order anew: what a call leaves in caches and memory slows or speeds the one that follows.

    On a GPU, before each the device is idle and its L2 cache is filled with other data. A call that the CPU launches
    too slowly is measured with the gaps between its kernels, as in use; it has the head start of the cache's filling,
    0.1 ms.

    Where `failures` is given, a call that raises an exception is left out from then on, with all its samples, and the
    reason goes there.
    """
    found: dict[Any, list[Sample]] = {name: [] for name in calls}
    timed = _on_a_gpu() if on_gpu() else _timed
    for number in range(warm_up + rounds):
        for name in in_any_order(found):
            try:
                sample = timed(calls[name])
            except Exception as failure:
                if failures is None:
                    raise
                failures[name] = failed(failure)
                del found[name]
                continue
            if number >= warm_up:
                found[name].append(sample)
    return found


def in_any_order(names: Collection[Any]) -> list[Any]:
    """Each once."""
    return random.sample(list(names), len(names))


def _timed(call: Callable[[], Any]) -> Sample:
    computed, start = time.process_time(), time.perf_counter()
    call()
    end, computed_then = time.perf_counter(), time.process_time()
    return Sample(1e3 * (end - start), 1e3 * (computed_then - computed))


def _on_a_gpu() -> Callable[[Callable[[], Any]], Sample]:
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")

    def timed(call: Callable[[], Any]) -> Sample:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        flush.zero_()
        computed = time.process_time()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return Sample(start.elapsed_time(end), 1e3 * (time.process_time() - computed))

    return timed


def wall_times(
    calls: Mapping[Any, Callable[[], Any]],
    rounds: int,
    warm_up: int = WARM_UP,
    failures: dict[Any, str] | None = None,
) -> dict[Any, list[float]]:
    """The milliseconds of `samples`."""
    return {name: [each.ms for each in found] for name, found in samples(calls, rounds, warm_up, failures).items()}


def milliseconds(
    calls: Mapping[Any, Callable[[], Any]], rounds: int, failures: dict[Any, str] | None = None
) -> dict[Any, list[float]]:
    """As `wall_times`, on a GPU; on a CPU calls are made once and the lists are empty: toy sizes are not timed."""
    if on_gpu():
        return wall_times(calls, rounds, failures=failures)
    return {name: [] for name in wall_times(calls, 1, 0, failures)}


def time_rows(
    rows: Sequence[dict[str, Any]], calls: Mapping[str, Call], rounds: int, baseline: str | None = None
) -> dict[str, list[float]]:
    """`milliseconds` of the calls, which are also put into the rows of the contenders of their names.

    A row gets "ms", 20, 50 and 80 %, or NOT_MEASURED where its call failed, and "faster", the median over the rounds of
    how many times as long `baseline` took.
    """
    failures: dict[str, str] = {}
    times = milliseconds(calls, rounds, failures)
    for row in rows:
        name = row["contender"]
        if name in failures:
            row[NOT_MEASURED] = failures[name]
        elif values := times.get(name):
            row["ms"] = percentiles(values)
            if baseline in times:
                row["faster"] = statistics.median(map(truediv, times[baseline], values))
    return times


def captured(call: Call) -> Call:
    """The call as a CUDA graph that is replayed; it returns the same tensors each time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()

    def replay() -> Sequence[Tensor]:
        graph.replay()
        return outputs

    return replay


def in_graph(call: Call) -> Call:
    """`captured`, on a GPU; on a CPU the call as it is."""
    return captured(call) if on_gpu() else call


def peak_bytes(call: Call) -> int | None:
    """The most that was allocated at once during a call, beyond what was before and what it returns; None on a CPU."""
    if not on_gpu():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in outputs)


def give_memory_back() -> None:
    """Makes glibc return what is freed to the system at once, from now on, so that the resident set is what is used."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 2**16)
    libc.mallopt(_TRIM_THRESHOLD, 0)


def in_fresh_process(function: Callable[..., Any], *arguments: Any, preloaded: Sequence[str]) -> Any:
    """What the function returns, or raises, in a process of its own, which has imported the modules `preloaded`.

    A server imports them once and forks for each call, so that their seconds are spent once. The process waits for
    nobody, so that it ends too where this one is killed. Raises RuntimeError where it ends without an answer.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preloaded))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        result, failure = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"its process ended with {process.exitcode}") from None
    process.join()
    if failure is not None:
        raise failure
    return result


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = function(*arguments), None
    except Exception as failure:
        answer = None, failure
    sender.send(answer)


def resident_growth(call: Callable[[], Any]) -> tuple[float, float]:
    """MiB that the resident set grew by at most during a call, and its size then. Linux, in a process of its own.

    What was freed before and is still resident is not seen to grow again: see `give_memory_back`.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak
    before = _memory_status("VmRSS")
    outputs = call()
    peak = _memory_status("VmHWM")
    del outputs  # alive until here: they are part of the peak
    return (peak - before) / 2**10, peak / 2**10


def _memory_status(field: str) -> int:
    """A field of this process's status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def rates(dtype: torch.dtype, rounds: int) -> Rates:
    """Medians of a copy of 1 GiB, on a CPU of 256 MiB, and of a square product in `dtype`, 8192 wide, on a CPU 2048."""
    gpu = on_gpu()
    device = "cuda" if gpu else "cpu"
    source = torch.randn(2**28 if gpu else 2**26, device=device)
    target = torch.empty_like(source)
    n = 8192 if gpu else 2048
    left, right = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    found = wall_times({"copy": lambda: target.copy_(source), "product": lambda: left @ right}, rounds)
    seconds = {name: statistics.median(values) / 1e3 for name, values in found.items()}
    return Rates(2 * source.nbytes / seconds["copy"], 2 * n**3 / seconds["product"])


def ceilings() -> dict[str, float]:
    """The GPU's rates in bfloat16, by name; empty on a CPU."""
    if not on_gpu():
        return {}
    found = rates(torch.bfloat16, rounds=20)
    return {"copy_bytes_per_s": found.copy_bytes_per_s, "bf16_flop_per_s": found.flop_per_s}
