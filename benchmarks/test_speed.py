"""The module's cases for pytest-benchmark, to save and compare runs on one machine:

    pytest benchmarks -n 0                            a table of times
    pytest benchmarks -n 0 --benchmark-autosave       keep them in .benchmarks/
    pytest benchmarks -n 0 --benchmark-compare        hold them against those kept last

`python -m benchmarks --against REV`, which times both in turns, tells a change from noise better.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from .contenders import PASSES, Unavailable, make, problem
from .measure import on_gpu
from .module import shape_of

SHAPES = {"multi-dsprites": (8, 4096, 6), "set-prediction": (16, 1024, 10)}


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("contender", ["torch", "reference", "slot-attention"])
def test_module(benchmark: BenchmarkFixture, contender: str, size: tuple[int, int, int], which: str) -> None:
    if on_gpu():
        pytest.skip("on a GPU: python -m benchmarks, which waits for it")
    benchmark.group = f"{' x '.join(map(str, size))} {which}"
    try:
        call = make(contender, problem(shape_of(*size, torch.float32), which))
    except Unavailable as reason:
        pytest.skip(str(reason))
    benchmark(call)
