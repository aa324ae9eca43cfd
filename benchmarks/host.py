"""The time that the CPU takes to launch a call of the Triton backend, without a GPU.

    python -m benchmarks.host [--rounds 200] [--out benchmarks/results]

On a GPU an eager call waits for this more than for its kernels (gpu-time.md). Here all of it runs but the kernels: what
Triton does before a launch too, up to the driver, which launches nothing. PyTorch's own operators do compute, on a CPU,
and so does the reference, which is timed in turns for comparison; the sizes are so small that both mostly wait for
Python. Times are the process's CPU time, medians with the 20th and 80th percentile. Writes host-cpu.csv and .md.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from .conditions import add_out, at_least, command, software, write_results
from .contenders import PASSES, make, problem
from .measure import device_name, samples
from .module import shape_of
from .spread import cell, columns

SIZES = (2, 32, 7)  # B, N, K
DTYPES = (torch.bfloat16, torch.float32)
OURS, REFERENCE = "ours: triton, its kernels left out", "reference, which computes"


class _Kernel:
    """A compiled kernel that is launched without effect."""

    function = packed_metadata = None

    def launch_metadata(self, *arguments: Any) -> None:
        return None

    def run(self, *arguments: Any) -> None:
        return None


class _Driver:
    """Of an H100, as far as a launch asks."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@contextmanager
def without_kernels() -> Iterator[None]:
    """While entered, calls on CPU tensors take the Triton backend, whose kernels do nothing. Not in the interpreter."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from slotattn_fast import functional

    def compiled(function: Any, key: Any, *arguments: Any, **options: Any) -> _Kernel:
        kernel = function.device_caches[0][0][key] = _Kernel()
        return kernel

    chosen = functional.Backend("triton", "its launches are timed")
    with (
        patch.object(JITFunction, "_do_compile", compiled),
        patch.object(functional, "explain_backend", lambda *arguments, **options: chosen),
        patch.object(driver, "_active", _Driver()),
    ):
        yield


def measure(which: str, dtype: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    """A row for ours and for the reference."""
    given = problem(shape_of(*SIZES, dtype), which)
    calls = {OURS: make("torch", given), REFERENCE: make("reference", given)}  # but ours takes Triton's, here:
    with without_kernels():
        found = samples(calls, rounds)
    rows = []
    for name, timed in found.items():
        head = {"dtype": str(dtype).removeprefix("torch."), "pass": which, "contender": name}
        rows.append(head | columns("ms", [sample.cpu_ms for sample in timed], 3))
        print(f"{head['dtype']:10}{which:18}{name:15}{rows[-1]['ms_median']:8.3f} ms", flush=True)
    return rows


def table(rows: list[dict[str, Any]], path: Path) -> str:
    first = rows[0]
    lines = [
        f"{first['device']}, 1 thread, torch {first['torch']}, Triton {first['triton']}, Python {first['python']}, "
        f"B x N x K = {' x '.join(map(str, SIZES))}, "
        f"medians of {first['rounds']} interleaved rounds (20th to 80th percentile), commit {first['commit']}, "
        f"{first['date']}: `{first['command']}`, {path}.",
        "",
        "| dtype | pass | | CPU time of a call |",
        "|---|---|---|---|",
    ]
    for row in rows:
        lines.append(f"| {row['dtype']} | {row['pass']} | {row['contender']} | {cell(row, 'ms', '.2f', 'ms')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(2), default=200, help="timed rounds")
    add_out(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    conditions = {"device": device_name(), "rounds": given.rounds, **software("torch", "triton")}
    found = accumulate(measure(which, dtype, given.rounds) for dtype in DTYPES for which in PASSES)
    write_results("host-cpu", found, conditions, table, given.out)


if __name__ == "__main__":
    command(main)
