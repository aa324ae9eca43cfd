"""Measuring on a GPU: interleaved rounds by CUDA events, captured graphs, peak memory, and the two ceilings.

On a CPU calls are made once and nothing is returned: there are no times without a GPU.
"""

import os
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Call = Callable[[], Sequence[Tensor]]
WARM_UP = 3  # rounds


def on_gpu() -> bool:
    """Whether kernels run on a GPU: there is one, and they are not interpreted."""
    return torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"


def milliseconds(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Of every call in every round, one after the other; empty lists on a CPU.

    Before each the device is idle and its L2 cache is filled with other data. A call that the CPU launches too slowly
    is measured with the gaps between its kernels, as in use; it has the head start of the cache's filling, 0.1 ms.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    if not on_gpu():
        for call in calls.values():
            call()
        return times
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    for number in range(rounds + WARM_UP):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            flush.fill_(number)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            if number >= WARM_UP:
                times[name].append(start.elapsed_time(end))
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


def ceilings(rounds: int = 20) -> dict[str, float]:
    """Bytes/s of a copy within device memory, read and written, and FLOP/s of a bf16 product; empty on a CPU."""
    if not on_gpu():
        return {}
    source = torch.randn(2**28, device="cuda")  # 1 GiB
    target = torch.empty_like(source)
    n = 8192
    left, right = (torch.randn(n, n, device="cuda").bfloat16() for _ in range(2))
    calls: dict[str, Call] = {"copy": lambda: [target.copy_(source)], "product": lambda: [left @ right]}
    median = {name: statistics.median(times) / 1e3 for name, times in milliseconds(calls, rounds).items()}
    return {"copy_bytes_per_s": 2 * source.nbytes / median["copy"], "bf16_flop_per_s": 2 * n**3 / median["product"]}


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20, 50 and 80 %."""
    p20, _, _, p80 = statistics.quantiles(values, n=5)
    return p20, statistics.median(values), p80
