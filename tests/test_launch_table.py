"""Every launch configuration of the passes over the inputs against float64: what the compiler makes of a dot, and of a
transposed one in particular, depends on the sizes of its blocks."""

import itertools
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from compare import DEVICE, normal
from slotattn_fast.kernels import ops
from slotattn_fast.kernels.arguments import Settings
from slotattn_fast.kernels.launch import MAX_QUERY_BYTES, AttendConfig, attend_config, fewest_waits
from torch import Tensor

WIDTHS = (16, 32, 64, 128, 256, 512)  # D_in, of each BLOCK_D
SLOTS = (8, 16, 32, 64)  # columns; h heads of K / h slots have the same
PASSES = ("first", "forward", "query", "inputs")
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
BATCH, ITERS, MULTIPROCESSORS = 2, 2, 132
SETTINGS = Settings(ITERS, 1, 1e-8, 1e-5, "mean", "numerator", True)


class Entry(NamedTuple):
    """A launch configuration, by what leads to it."""

    dtype: torch.dtype
    which: str
    width: int
    num_slots: int
    hopper: bool = True
    aligned: bool = True

    @property
    def id(self) -> str:
        what = "-no-hopper" * (not self.hopper) + "-not-aligned" * (not self.aligned)
        return f"{str(self.dtype)[6:]}-{self.which}-{self.width}-wide-{self.num_slots}-slots{what}"

    def config(self, B: int = BATCH, N: int = 10**4, heads: int = 1) -> AttendConfig:
        sizes = (B, N, self.width, self.num_slots // heads, heads, self.dtype.itemsize, MULTIPROCESSORS)
        return attend_config(*sizes, self.which, self.hopper, self.aligned)


TABLE = [
    Entry(dtype, which, width, num_slots)
    for dtype, which, width, num_slots in itertools.product(TOLERANCES, PASSES, WIDTHS, SLOTS)
    if width * num_slots * dtype.itemsize <= MAX_QUERY_BYTES  # more is not served
]
ELSEWHERE = [Entry(torch.bfloat16, which, 64, 16, hopper=False) for which in PASSES]
"""On GPUs that are no Hopper: another size of blocks, and loaded a second time."""
NOT_ALIGNED = [
    Entry(dtype, which, width, 8, aligned=False)
    for dtype, which, width in itertools.product((torch.float16, torch.bfloat16), ("forward", "query"), (16, 32, 64))
]
"""Inputs that are copied in pieces of less than 16 bytes: no limit of registers."""


def parameter(entry: Entry) -> Any:
    """All on a GPU; with the interpreter, to which block sizes mean little, one stressed axis a row."""
    usual = (entry.num_slots == 8 and (entry.width == 16 or entry.dtype == torch.bfloat16)) or not entry.hopper
    return pytest.param(entry, id=entry.id, marks=() if usual or DEVICE == "cuda" else pytest.mark.slow)


def compiled(config: AttendConfig) -> tuple[int | None, ...]:
    """What a kernel is compiled for."""
    columns = config.block_h * config.block_k
    return (
        *(config.block_n, config.block_d, columns, config.by_dot),
        *(config.num_warps, config.num_stages, config.max_registers),
    )


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_the_table_has_all_that_a_call_can_launch(dtype: torch.dtype, which: str) -> None:
    of_these = (entry for entry in (*TABLE, *NOT_ALIGNED) if (entry.dtype, entry.which) == (dtype, which))
    known = {compiled(entry.config()) for entry in of_these}
    for B, N, D_in in itertools.product((1, 64, 4096), (1, 100, 16384), (1, 24, 48, 96, 192, 300, 512)):
        for heads, K in itertools.product((1, 2, 3, 8, 64), (1, 5, 7, 16, 33, 64)):
            for aligned in (True, False):
                sizes = (B, N, D_in, K, heads, dtype.itemsize, MULTIPROCESSORS)
                config = attend_config(*sizes, which, aligned=aligned)
                columns = config.block_h * config.block_k
                if columns <= 64 and config.block_d * columns * dtype.itemsize <= MAX_QUERY_BYTES:
                    assert compiled(config) in known


def test_registers_are_limited_where_inputs_are_copied_16_bytes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found, table = [], ops.attend_config

    def limit(inputs: Tensor) -> int | None:
        query, stats = torch.zeros(2, 1, 7, inputs.shape[-1] + 1, device=DEVICE), torch.zeros(2, 2, 40, device=DEVICE)
        ops.attend_forward(inputs, None, None, query, stats, SETTINGS, first=False)
        return found[-1].max_registers

    def noted(*sizes: Any) -> AttendConfig:
        found.append(table(*sizes))
        return found[-1]

    monkeypatch.setattr(ops, "attend_config", noted)
    x = torch.zeros(2, 40, 80, dtype=torch.bfloat16, device=DEVICE)
    for aligned in (x[..., :64], x[..., 16:80], torch.zeros_like(x[..., :48])):
        assert limit(aligned) == 128
    for other in (x[..., 1:65], torch.zeros_like(x[..., :24]), torch.zeros_like(x)[:, :, :63].contiguous()):
        assert limit(other) is None
    assert limit(torch.zeros(2, 64, 40, dtype=torch.bfloat16, device=DEVICE).mT) is None  # 40 is no multiple of 16
    assert limit(torch.zeros(2, 40, 64, 16, dtype=torch.bfloat16, device=DEVICE)[..., 8]) is None  # none lie together


@pytest.mark.parametrize(
    ("B", "tiles", "splits"),
    [(64, 128, 8), (512, 8, 1), (1, 128, 32), (192, 128, 8), (384, 128, 4), (640, 8, 2), (10**5, 128, 1), (3, 1, 1)],
)
def test_programs_wait_for_as_little_as_can_be(B: int, tiles: int, splits: int) -> None:
    """528 programs at a time, of which the last are few; and the update that adds up their sums waits too."""
    assert fewest_waits(B, tiles, 4 * MULTIPROCESSORS, 1) == splits
    config = attend_config(B, 128 * tiles, 64, 7, 1, 2, MULTIPROCESSORS, "forward")
    assert (config.block_n, config.blocks) == (128, -(-tiles // splits))


def test_many_slots_are_split_less() -> None:
    """As a program then reads and writes more than its inputs."""
    assert attend_config(192, 4096, 64, 7, 1, 2, MULTIPROCESSORS, "inputs").splits == 8
    assert attend_config(192, 4096, 64, 64, 1, 2, MULTIPROCESSORS, "inputs").splits == 5


@pytest.mark.parametrize("entry", [parameter(entry) for entry in TABLE + ELSEWHERE + NOT_ALIGNED])
def test_equals_float64(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five blocks, the last not full, in two programs of three, so that the loop over blocks is one."""
    N = 5 * entry.config().block_n - 3
    config = entry.config(N=N)._replace(blocks=3, splits=2)
    monkeypatch.setattr(ops, "attend_config", lambda *sizes: config)
    x = (2 * normal(BATCH, N, entry.width) + 1).to(entry.dtype)
    if not entry.aligned:
        x = F.pad(x, (0, 1))[..., :-1]
    queries, d_sums = (normal(ITERS, BATCH, 1, entry.num_slots, entry.width + 1, seed=seed) for seed in (1, 2))
    for side, size in ((queries, entry.width**-0.5), (d_sums, 1.0)):
        side *= size
        side[..., :-1] -= side[..., :-1].mean(-1, keepdim=True)  # as the folded weights have it
    found = by_kernels(entry.which, x, queries.float(), d_sums.float())
    for name, want in by_autograd(entry.which, x.double(), queries.float().double(), d_sums.float().double()).items():
        error = (found[name].double() - want).norm() / want.norm()
        assert error <= TOLERANCES[entry.dtype], name


def by_kernels(which: str, x: Tensor, queries: Tensor, d_sums: Tensor) -> dict[str, Tensor]:
    """With all outputs NaN beforehand."""
    mean, rstd = x.double().mean(-1), (x.double().var(-1, correction=0) + SETTINGS.norm_eps).rsqrt()
    stats = torch.stack([mean, rstd]).float()
    given = (x, None, None)
    if which == "first":
        stats.fill_(torch.nan)
        return {"sums": ops.attend_forward(*given, queries[0], stats, SETTINGS, first=True).sum(0), "stats": stats}
    if which == "forward":
        return {"sums": ops.attend_forward(*given, queries[0], stats, SETTINGS, first=False).sum(0)}
    if which == "query":
        return {"d_query": ops.attend_backward(*given, queries[:1], d_sums[:1], stats, SETTINGS, None).sum(0)}
    d_x = torch.full_like(x, torch.nan)
    d_query = ops.attend_backward(*given, queries, d_sums, stats, SETTINGS, d_x).sum(0)
    return {"d_query": d_query, "d_x": d_x}


def by_autograd(which: str, x: Tensor, queries: Tensor, d_sums: Tensor) -> dict[str, Tensor]:
    """The equations of kernels/README.md in float64."""
    x.requires_grad_()
    queries.requires_grad_()
    normed = F.layer_norm(x, x.shape[-1:], eps=SETTINGS.norm_eps)
    extended = torch.cat([normed, torch.ones_like(normed[..., :1])], -1)[:, None]  # x-_n [B, 1, N, D_in + 1]
    attn = (extended @ queries.mT).softmax(-1) + SETTINGS.eps  # [T, B, 1, N, K]
    sums = attn.mT @ extended
    if which == "first":
        variance = x.var(-1, correction=0)
        return {"sums": sums[0], "stats": torch.stack([x.mean(-1), (variance + SETTINGS.norm_eps).rsqrt()])}
    if which == "forward":
        return {"sums": sums[0]}
    d_x, d_queries = torch.autograd.grad((sums * d_sums).sum(), (x, queries))
    return {"d_query": d_queries[0]} if which == "query" else {"d_query": d_queries[0], "d_x": d_x}
