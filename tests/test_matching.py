"""Exact matching by the kernel, interpreted or on a GPU, against SciPy: costs, PyTorch's transformations, errors."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compare import DEVICE
from scipy.optimize import linear_sum_assignment
from slotattn_fast.kernels.launch import matching_block
from slotattn_fast.kernels.support import MAX_MATCHED, why_not_matching
from torch import Tensor

from benchmarks import gpu_once
from benchmarks import matching as benchmark
from benchmarks.aot_rows import VARIANTS, Row, rows
from benchmarks.measure import captured
from slotattn_fast import matching
from slotattn_fast.matching import match

pytest.importorskip("triton")
from slotattn_fast.kernels import matching_ops

OPERATOR = torch.ops.slotattn_fast.match


@pytest.fixture
def by_kernel(monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of tensors that the kernel then serves."""
    monkeypatch.setattr(matching, "_by_scipy", matching_ops.match)
    return DEVICE


@pytest.fixture(params=["kernel", "scipy"])
def device(request: pytest.FixtureRequest) -> str:
    """The device of tensors that the kernel serves, and then of those that SciPy does."""
    return request.getfixturevalue("by_kernel") if request.param == "kernel" else "cpu"


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def integers(generator: torch.Generator, *shape: int) -> Tensor:
    """Of three values, so that many assignments cost the same."""
    return torch.randint(-1, 2, shape, generator=generator).double()


def signs(generator: torch.Generator, *shape: int) -> Tensor:
    return normal(generator, *shape).sign()


def ascending(generator: torch.Generator, *shape: int) -> Tensor:
    """(r + 1) (c + 1) in all: every new row moves all before it."""
    B, R, C = shape
    return (torch.arange(1.0, R + 1)[:, None] * torch.arange(1.0, C + 1)).expand(B, R, C).double()


def padded(generator: torch.Generator, *shape: int) -> Tensor:
    """Distances to targets of which half are zero, as the set-prediction loss has them."""
    B, R, C = shape
    targets, predictions = (torch.rand((B, n, 19), generator=generator, dtype=torch.float64) for n in (R, C))
    targets[:, : R // 2] = 0
    return (targets[:, :, None] - predictions[:, None]).square().mean(-1)


def equal_rows(generator: torch.Generator, *shape: int) -> Tensor:
    return normal(generator, shape[0], 1, shape[2]).expand(shape)


def equal_columns(generator: torch.Generator, *shape: int) -> Tensor:
    return normal(generator, *shape[:2], 1).expand(shape)


def forbidden(generator: torch.Generator, *shape: int) -> Tensor:
    """Most pairs are not to be."""
    return normal(generator, *shape) + 1e9 * (torch.rand(shape, generator=generator) < 0.7)


def scales(generator: torch.Generator, *shape: int) -> Tensor:
    """A size for each row and each column, 1e-18 to 1e18 together."""
    size = 10 ** (18 * torch.rand((*shape[:2], 1), generator=generator, dtype=torch.float64) - 9)
    return normal(generator, *shape) * size * 10 ** (18 * torch.rand((shape[0], 1, shape[2]), generator=generator) - 9)


@dataclass(frozen=True)
class Case:
    """Problems of one kind."""

    id: str
    R: int
    C: int
    count: int
    draw: Callable[..., Tensor] = normal
    dtype: torch.dtype = torch.float32
    few: int = 2  # of them where the kernel is interpreted, which takes 10 to 5000 ms for one

    def costs(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(len(self.id) + 100 * self.R + self.C)
        return self.draw(generator, count, self.R, self.C).to(DEVICE, self.dtype)


CASES = [
    Case("random", 6, 6, 1000),
    Case("float64", 6, 6, 1000, dtype=torch.float64),
    Case("bfloat16", 6, 6, 1000, dtype=torch.bfloat16),
    Case("float16", 6, 6, 500, dtype=torch.float16),
    Case("set-prediction", 10, 10, 500, padded),
    Case("set-prediction-bfloat16", 10, 10, 100, padded, torch.bfloat16),
    Case("few-targets", 4, 10, 500, padded),
    Case("tied", 5, 5, 1000, integers),
    Case("two-values", 6, 8, 500, signs),
    Case("wide", 3, 7, 1000),
    Case("tall", 7, 3, 1000),
    Case("tall-tied", 6, 5, 500, integers),
    Case("one-row", 1, 9, 100),
    Case("one-column", 9, 1, 100),
    Case("one-by-one", 1, 1, 50),
    Case("all-equal", 5, 5, 50, lambda generator, *shape: torch.full(shape, 0.1)),
    Case("all-zero", 5, 7, 50, lambda generator, *shape: torch.zeros(shape)),
    Case("equal-rows", 5, 6, 150, equal_rows),
    Case("equal-columns", 5, 6, 150, equal_columns),
    Case("huge", 5, 5, 150, lambda generator, *shape: 1e30 * normal(generator, *shape)),
    Case("tiny", 5, 5, 150, lambda generator, *shape: 1e-30 * normal(generator, *shape)),
    Case("denormal", 5, 5, 50, lambda generator, *shape: 1e-42 * normal(generator, *shape)),
    Case("scales", 5, 5, 100, scales),
    Case("negative", 5, 5, 100, lambda generator, *shape: -normal(generator, *shape).abs() - 100),
    Case("far-from-0", 5, 5, 50, lambda generator, *shape: normal(generator, *shape) + 1e9, torch.float64),
    Case("forbidden", 7, 7, 100, forbidden),
    Case("ascending", 8, 8, 1, ascending),
    Case("ascending-32", 32, 32, 1, ascending, few=0),
    Case("size-31-32", 31, 32, 8, few=0),
    Case("size-32", 32, 32, 25, few=1),
    Case("size-32-tied", 32, 32, 5, integers, few=1),
    Case("size-33-40", 33, 40, 5, few=1),
    Case("size-64", 64, 64, 3, few=0),
    Case("size-3-64", 3, 64, 2),
]


def assert_costs_as_little(cost: Tensor, pairs: tuple[Tensor, Tensor]) -> None:
    """As SciPy's, to the bit: each sum is rounded once. And every row and every column is in one pair at most."""
    rows, columns = (x.cpu().numpy() for x in pairs)
    B, R, C = cost.shape
    assert rows.dtype == columns.dtype == np.int64
    assert rows.shape == columns.shape == (B, min(R, C))
    for problem, r, c in zip(cost.double().cpu().numpy(), rows, columns, strict=True):
        assert (np.diff(r) > 0).all()
        assert set(r) <= set(range(R))
        assert len({*c}) == len(c)
        assert set(c) <= set(range(C))
        assert math.fsum(problem[r, c]) == math.fsum(problem[linear_sum_assignment(problem)])


@pytest.mark.parametrize("case", [c for c in CASES if c.few or DEVICE == "cuda"], ids=lambda case: case.id)
def test_costs_as_little_as_by_scipy(case: Case, by_kernel: str) -> None:
    """All 10 000 on a GPU."""
    cost = case.costs(case.count if DEVICE == "cuda" else min(case.count, case.few))
    assert_costs_as_little(cost, match(cost))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_all_cost_as_little_as_by_scipy(case: Case, by_kernel: str) -> None:
    """Where the kernel is interpreted that takes 10 minutes."""
    cost = case.costs(case.count)
    assert_costs_as_little(cost, match(cost))


def test_they_are_10_000() -> None:
    assert sum(case.count for case in CASES) == 10_000


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 3), (2, 3, 0), (2, 0, 0)], ids=str)
def test_nothing_to_match(shape: tuple[int, int, int], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching_ops, "match_kernel", None)  # nothing to launch
    found = match(torch.zeros(shape, device=device))
    assert [x.shape for x in found] == [(shape[0], min(shape[1:]))] * 2


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "cut": lambda x: torch.nn.functional.pad(x, (2, 1, 1, 3), value=torch.nan)[:, 1:-3, 2:-1],
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch-last": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "every-other": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "expanded": lambda x: x[:1].expand(3, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tall", [False, True])
def test_any_strides(tall: bool, layout: str, by_kernel: str) -> None:
    cost = LAYOUTS[layout](Case("", *((7, 4) if tall else (4, 7)), 3).costs(3))
    assert not cost.is_contiguous()
    assert_costs_as_little(cost, match(cost))


@pytest.mark.parametrize("strides", [(2**30, 8, 1), (16, 2**30, 1), (16, 1, 2**30)], ids=["batch", "row", "column"])
def test_offsets_beyond_int32(strides: tuple[int, ...], by_kernel: str) -> None:
    # Touched in few places, so that it takes little memory on a CPU.
    storage = torch.empty(2**31 + 2**20, dtype=torch.float16, device=DEVICE)
    cost = storage.as_strided((3, 3, 3), strides)
    cost.copy_(Case("", 3, 3, 3).costs(3))
    assert_costs_as_little(cost, match(cost))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 5, 3)], ids=str)
def test_costs_that_are_not_finite(shape: tuple[int, int, int], value: float, device: str) -> None:
    """An error that names the first; unchecked the pairs (r, r) for its problem, and nothing else for the others."""
    clean = Case("", *shape[1:], 4).costs(4).to(device)
    cost = clean.clone()
    cost[3, 0, 2] = cost[3, 2, 1] = value
    with pytest.raises(ValueError, match=rf"cost: got {value} at \[3, 0, 2\], expected finite numbers"):
        match(cost)
    rows, columns = match(cost, check=False)
    assert rows[3].tolist() == columns[3].tolist() == [0, 1, 2]
    expected = match(clean)
    assert torch.equal(rows[:3], expected[0][:3])
    assert torch.equal(columns[:3], expected[1][:3])


@pytest.mark.parametrize("shape", [(2, 3, 40), (2, 40, 3), (1, 33, 35)], ids=str)
@pytest.mark.parametrize("where", [(0, 0), (-1, -1)], ids=str)
def test_every_cost_is_looked_at(where: tuple[int, int], shape: tuple[int, int, int], by_kernel: str) -> None:
    cost = torch.arange(math.prod(shape), 0.0, -1, device=DEVICE).view(shape).square()
    cost[(0, *where)] = math.inf
    assert match(cost, check=False)[1][0].tolist() == list(range(min(shape[1:])))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # the interpreter's NumPy
@pytest.mark.parametrize("size", [5, 33])
def test_sums_beyond_the_largest_number_end(size: int, by_kernel: str) -> None:
    """In float64, with infinite and undefined sums: whatever comes out is an assignment."""
    cost = 1.7e308 * integers(torch.Generator().manual_seed(0), 1, size, size).to(DEVICE)
    assert match(cost)[1].sort(1)[0].tolist() == [list(range(size))]


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 5, 3)], ids=str)
def test_compiles_and_exports_whole(shape: tuple[int, int, int], device: str) -> None:
    def gathered(cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = match(cost, check=False)
        return rows, columns, cost[torch.arange(len(cost), device=device)[:, None], rows, columns].sum()

    class Module(torch.nn.Module):
        def forward(self, cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return gathered(cost)

    cost = Case("", *shape[1:], 2).costs(2).to(device)
    expected = gathered(cost)
    torch.compiler.reset()
    functions = [torch.compile(gathered, fullgraph=True, backend=backend) for backend in ("eager", "aot_eager")]
    functions.append(torch.export.export(Module(), (cost,)).module())
    for function in functions:
        assert all(torch.equal(x, want) for x, want in zip(function(cost), expected, strict=True))
    cost.requires_grad_()
    for function in (gathered, *functions[:2]):
        (grad,) = torch.autograd.grad(function(cost)[2], cost)
        assert grad.sum() == 6  # ones, at the pairs


def test_one_graph_serves_every_size(device: str) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(match, fullgraph=True, dynamic=True, backend="aot_eager")
    for B, R, C in ((2, 3, 4), (3, 5, 7), (5, 2, 3)):
        cost = Case("", R, C, B).costs(B).to(device)
        assert all(torch.equal(*pair) for pair in zip(compiled(cost, check=False), match(cost), strict=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operator_is_registered_right(dtype: torch.dtype, device: str) -> None:
    """opcheck: the schema tells of no aliasing or mutation that is not there; fake tensors get shapes and strides."""
    cost = Case("", 3, 5, 2, dtype=dtype).costs(2).to(device)
    for x in (cost, cost.mT[:, :2], cost[:0]):
        torch.library.opcheck(OPERATOR.default, (x,))


@pytest.mark.parametrize(
    ("cost", "check", "error", "message"),
    [
        (np.zeros((1, 2, 2)), True, TypeError, r"cost: got ndarray, expected a tensor \[B, R, C\]"),
        (torch.zeros(2, 3), True, ValueError, r"cost: got shape \[2, 3\], expected \[B, R, C\]"),
        (torch.zeros(1, 2, 2).int(), True, TypeError, "cost: got torch.int32, expected one of torch.float64, .*; conv"),
        (torch.zeros(1, 2, 2, device="meta"), False, RuntimeError, r"cost: the costs are on 'meta', .*cost\.cpu\(\)"),
    ],
)
def test_errors(cost: Any, check: bool, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        match(cost, check)


def test_what_the_kernel_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not_matching("cuda", MAX_MATCHED, MAX_MATCHED) is None
    for shape in ((65, 3), (3, 65)):
        message = f"the costs are {shape[0]} x {shape[1]}, and the kernel takes 64 x 64 at most"
        assert why_not_matching("cuda", *shape) == message
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "'cpu'" in (why_not_matching("cpu", 3, 3) or "")


def test_scipy_serves_any_size_on_a_cpu() -> None:
    cost = Case("", 70, 65, 1).costs(1).cpu()
    assert_costs_as_little(cost, match(cost))


@pytest.mark.parametrize("warp_size", [32, 64])
def test_blocks_hold_all_columns_and_fill_a_warp(warp_size: int) -> None:
    for C in range(1, MAX_MATCHED + 1):
        block = matching_block(C, warp_size)
        assert block >= C
        assert block in (warp_size, 64)


@pytest.mark.parametrize("row", [row for row in rows() if row.variant == "matching"], ids=lambda row: row.id)
def test_arguments_ahead_of_time_are_those_of_the_launch(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """What benchmarks/aot_rows.py compiles is what a call on a device would compile."""
    launches = []

    class Recorder:
        kernel = matching_ops.match_kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*given: Any, num_warps: int, enable_fp_fusion: bool, **rest: Any) -> None:
                options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
                launches.append((grid, options, inspect.signature(self.kernel.fn).bind(*given, **rest).arguments))

            return launch

    monkeypatch.setattr(matching_ops, "match_kernel", Recorder())
    monkeypatch.setattr(matching_ops, "WARP_SIZE", 64 if row.target == "gfx942" else 32)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[row.dtype]
    matching_ops.match(torch.empty(row.case.B, row.case.K, row.case.K, dtype=dtype, device="meta"))
    ((grid, options, arguments),) = launches
    expected = row.launch()
    tensors = {"cost": f"*{row.dtype}", "columns": "*i64"}
    assert VARIANTS[row.variant].kernel == "match_kernel"
    assert grid == (row.case.B,)
    assert (arguments | tensors, options) == (expected.arguments, expected.options)


def test_what_watches_a_program_launches_it() -> None:
    assert gpu_once.matching_launches(torch.bfloat16, DEVICE) == {"match_kernel": len(gpu_once.MATCHED)}


def test_the_benchmark_checks_and_tells_every_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    found = benchmark.measure((2, 3, 4), rounds=2)
    assert [row["contender"] for row in found][:3] == [benchmark.LOOP, "match", "match, unchecked"]
    assert (found[0]["times_faster_median"], found[0]["rows"], found[0]["columns"]) == (1, 3, 4)
    conditions = dict.fromkeys(("device", "processor", "torch", "scipy", "triton", "rounds", "commit", "date"), "x")
    conditions["command"] = "python -m benchmarks.matching"
    lines = benchmark.table([row | conditions for row in found], Path("folder/matching-x.csv")).splitlines()
    assert lines[0].endswith(": `python -m benchmarks.matching`, folder/matching-x.csv.")
    assert len(lines) == len(found) + 4
    assert lines[-1].startswith(f"| 2 | 3 x 4 | {found[-1]['contender']} | ")

    ms = {benchmark.LOOP: [3.0, 8.0, 12.0], "match": [2.0, 2.0, 6.0], "match, unchecked": [1.0, 2.0, 4.0]}
    with monkeypatch.context() as patched:
        patched.setattr(benchmark, "wall_times", lambda calls, rounds: {name: ms[name] for name in calls})
        patched.setattr(benchmark, "on_gpu", lambda: False)
        found = benchmark.measure((2, 3, 4), rounds=3)
    assert [(row["ms_median"], row["times_faster_median"]) for row in found] == [(8, 1), (2, 2), (2, 3)]

    def first(cost: Tensor, check: bool = True) -> tuple[Tensor, Tensor]:
        each = torch.arange(3, device=cost.device).expand(2, 3)
        return each, each

    monkeypatch.setattr(benchmark, "match", first)
    with pytest.raises(AssertionError, match="match: costs more than SciPy"):
        benchmark.measure((2, 3, 4), rounds=2)
    nearly = 1 + 1e-6 * torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(benchmark, "make_costs", lambda *shape: nearly)
    with pytest.raises(AssertionError, match="match: costs more than SciPy"):
        benchmark.measure((2, 3, 4), rounds=2)


needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="no GPU, or TRITON_INTERPRET is not 0")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("shape", [(512, 10, 10), (64, 12, 7)], ids=str)
def test_nothing_waits_for_the_device_and_a_graph_replays_it(shape: tuple[int, int, int]) -> None:
    """For other costs than those of the capture, written into the same memory."""
    cost, other = Case("random", *shape[1:], 0).costs(2 * shape[0]).chunk(2)
    match(cost, check=False)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        match(cost, check=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    replay = captured(lambda: match(cost, check=False))
    cost.copy_(other)
    assert all(torch.equal(x, want) for x, want in zip(replay(), match(other), strict=True))
    assert_costs_as_little(other, match(other))


@pytest.mark.gpu
@needs_gpu
def test_compiles_by_inductor_with_cuda_graphs() -> None:
    cost = Case("random", 10, 10, 0).costs(512)
    torch.compiler.reset()
    compiled = torch.compile(match, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        assert all(torch.equal(*pair) for pair in zip(compiled(cost, check=False), match(cost), strict=True))


@pytest.mark.gpu
@needs_gpu
def test_what_is_too_large_for_the_kernel_is_said() -> None:
    with pytest.raises(RuntimeError, match=r"cost: .* 3 x 65, .* 64 x 64 at most; match a copy, cost\.cpu\(\)"):
        match(torch.zeros(1, 3, 65, device=DEVICE))
