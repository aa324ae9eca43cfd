"""The kernels over the slots, interpreted or on a GPU, against the same functions of `slot_update` in float64."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from compare import DEVICE, Results, largest, normal, rms
from slotattn_fast.kernels.arguments import Settings, Weights
from slotattn_fast.kernels.device import precision
from slotattn_fast.kernels.launch import WeightsConfig, update_config, update_serves, weights_config
from torch import Tensor

from slotattn_fast import slot_update

pytest.importorskip("triton")
from slotattn_fast.kernels import slot_ops


@dataclass(frozen=True)
class Case:
    """One stressed axis; everything else is small, and the widths are no powers of two."""

    id: str
    batch: int = 3
    num_slots: int = 5
    dim: int = 24
    input_dim: int = 20
    hidden_dim: int | None = 40
    heads: int = 1
    splits: int = 2
    gru: bool = True
    norms: bool = True
    biases: bool = True  # of the values and the recurrent product
    eps: float = 1e-8
    eps_in: str = "numerator"
    aggregation: str = "mean"
    masked: bool = False
    empty: bool = False  # slots to which nothing was given
    slots_dtype: torch.dtype = torch.float32
    scale: float = 1.0  # of the sums and slots
    layout: Callable[[Tensor], Tensor] = lambda x: x  # of the gradients from outside


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, 2).contiguous().transpose(0, 2)


def expanded(x: Tensor) -> Tensor:
    return x[:1, :1, :1].expand_as(x)


CASES = [
    Case("plain"),
    Case("one-slot", num_slots=1),
    Case("slots-7", num_slots=7),
    Case("slots-64", num_slots=64, batch=2),
    Case("rows-16", batch=2, num_slots=8),
    Case("one-image-one-slot", batch=1, num_slots=1),
    Case("no-image", batch=0),
    *(Case(f"slots-width-{D}", dim=D) for D in (1, 16, 48, 64, 96, 128)),
    *(Case(f"inputs-width-{D}", input_dim=D) for D in (1, 16, 32, 48, 128)),
    *(Case(f"hidden-{H}", hidden_dim=H) for H in (1, 37, 128, 256)),
    Case("wide", dim=128, input_dim=128, hidden_dim=256),
    Case("heads-2", heads=2),
    Case("heads-4-no-gru", heads=4, gru=False),
    Case("heads-8", heads=8),
    *(Case(f"splits-{P}", splits=P) for P in (1, 3, 13)),
    Case("no-gru", gru=False),
    Case("no-mlp", hidden_dim=None),
    Case("no-gru-no-mlp", gru=False, hidden_dim=None),
    Case("no-norms", norms=False),
    Case("k-means", gru=False, hidden_dim=None, norms=False, biases=False),
    Case("no-biases", biases=False),
    Case("no-biases-no-gru", biases=False, gru=False),
    Case("eps-denominator", eps=0.3, eps_in="denominator"),
    Case("eps-denominator-heads", eps=0.3, eps_in="denominator", heads=3),
    Case("sum", aggregation="sum", eps=0.3, eps_in="denominator"),
    Case("sum-heads", aggregation="sum", heads=3),
    Case("eps-0-nothing-given", eps=0.0, empty=True),
    Case("eps-0-denominator-nothing-given", eps=0.0, eps_in="denominator", empty=True),
    Case("slot-mask", masked=True),
    Case("slot-mask-no-gru", masked=True, gru=False),
    Case("slots-bfloat16", slots_dtype=torch.bfloat16),
    Case("slots-float16", slots_dtype=torch.float16),
    Case("gradient-transposed", layout=transposed),
    Case("gradient-expanded", layout=expanded),
    Case("large", scale=1e4),
    Case("small", scale=1e-4),
]


def settings(case: Case) -> Settings:
    return Settings(2, case.heads, case.eps, 1e-5, case.aggregation, case.eps_in, True)


def weights(case: Case) -> Weights:
    """Float64, each about as large as the layer's initialisation makes it."""
    D, H, width, V = case.dim, case.hidden_dim, case.heads * (case.input_dim + 1), (3 if case.gru else 1) * case.dim

    def matrix(rows: int, columns: int, fan_in: int, seed: int) -> Tensor:
        return normal(rows, columns, seed=seed) / fan_in**0.5

    def affine(seed: int) -> Tensor | None:
        return 0.3 * normal(2, D, seed=seed) + torch.tensor([[1.0], [0.0]], device=DEVICE) if case.norms else None

    return Weights(
        query=matrix(D, width, D, 1),
        query_bias=0.3 * normal(width, seed=2),
        value=matrix(width, V, width, 3),
        value_bias=0.3 * normal(V, seed=4) if case.biases else None,
        norm_slots=affine(5),
        norm_updates=None,
        gates=None,
        gates_bias=None,
        recurrent=matrix(3 * D, D, D, 6) if case.gru else None,
        recurrent_bias=0.3 * normal(3 * D, seed=7) if case.gru and case.biases else None,
        norm_pre_ff=affine(8),
        hidden=matrix(H, D, D, 9) if H else None,
        hidden_bias=0.3 * normal(H, seed=10) if H else None,
        out=matrix(D, H, H, 11) if H else None,
        out_bias=0.3 * normal(D, seed=12) if H else None,
    )


@dataclass(frozen=True)
class Given:
    """Two iterations: the initial slots, the sums' parts of each and all gradients from outside."""

    slots: Tensor  # [B, K, D]
    partials: Tensor  # [T, P, B, h, K, D_in + 1]
    slot_mask: Tensor | None
    d_states: Tensor  # [T, B, K, D]
    d_query_partials: Tensor  # [T, P, B, h, K, D_in + 1]
    weights: Weights

    def to(self, dtype: torch.dtype) -> "Given":
        w = Weights._make(None if x is None else x.to(dtype) for x in self.weights)
        floats = (self.partials, self.d_states, self.d_query_partials)
        partials, d_states, d_query_partials = (x.to(dtype) for x in floats)
        return Given(self.slots.to(dtype), partials, self.slot_mask, d_states, d_query_partials, w)


def given(case: Case) -> Given:
    """Float64, of numbers that float32 has too, and the slots' own type."""
    B, K, D = case.batch, case.num_slots, case.dim
    shape = (2, case.splits, B, case.heads, K, case.input_dim + 1)
    partials = case.scale * normal(*shape, seed=20)
    partials[..., -1] = case.scale * (0.5 + normal(*shape[:-1], seed=21).abs())
    if case.empty:
        partials[:, :, :, :, 0] = 0
    mask = None
    if case.masked:
        mask = normal(B, K, seed=22) > 0
        mask[0, 0], mask[0, 1] = True, False
    slots = (case.scale * normal(B, K, D, seed=23)).to(case.slots_dtype)
    raw = Given(slots, partials, mask, normal(2, B, K, D, seed=24), normal(*shape, seed=25), weights(case))
    return raw.to(torch.float32).to(torch.float64)


def by_pytorch(x: Given, case: Case) -> Results:
    """With the functions of `slot_update`, in the type of what is given."""
    s, w, sums = settings(case), x.weights, x.partials.sum(1)
    found = {"query 0": slot_update.next_query(x.slots, w, s)}
    before, all_before = x.slots, []
    for t in range(2):
        all_before.append(before)
        before = found[f"slots {t}"] = slot_update.update(before, sums[t], x.slot_mask, w, s)
    found["query 1"] = slot_update.next_query(found["slots 0"], w, s)
    found["sums 0"], found["sums 1"] = sums
    tape = slot_update.recompute(torch.stack(all_before), sums, w, s)
    grads, everything = slot_update.Gradients(w), slice(None)
    d_slots = torch.zeros_like(x.slots)
    for t in (1, 0):
        d_new = d_slots + case.layout(x.d_states[t])
        d_slots, found[f"d_sums {t}"] = slot_update.update_backward(
            d_new, x.slot_mask, tape.at(t, everything), w, s, grads
        )
        d_query = x.d_query_partials[t].sum(0)
        d_slots = d_slots + slot_update.next_query_backward(d_query, tape.at(t, everything), w, grads)
    found["d_slots"] = d_slots
    return found | {f"d_{name}": grad for name, grad in grads.total()._asdict().items() if grad is not None}


def by_kernels(x: Given, case: Case, dtype: torch.dtype = torch.float32) -> Results:
    """With the kernels, into memory filled with NaN; `dtype` is that of the call."""
    s, w, (B, K, D) = settings(case), x.weights, x.slots.shape

    def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)

    of_sums, slots = x.partials.shape[2:], x.slots.to(case.slots_dtype)
    queries, sums, d_sums = (poisoned(2, *of_sums) for _ in range(3))
    states = poisoned(2, B, K, D)
    rows = slot_ops.new_rows(2, B * K, D, case.input_dim, w, s)
    for row in rows:
        if row is not None:
            row.fill_(torch.nan)
    slot_ops.first_query(slots, w, s, queries[0], dtype)
    slot_ops.update(x.partials[0], slots, x.slot_mask, w, s, sums[0], states[0], queries[1], dtype)
    slot_ops.update(x.partials[1], states[0], x.slot_mask, w, s, sums[1], states[1], None, dtype)
    carry, d_slots = poisoned(2, B, K, D), poisoned(B, K, D, dtype=case.slots_dtype)
    d_states = [case.layout(d) for d in x.d_states]
    slot_ops.update_backward(
        None,
        d_states[1],
        None,
        states[1],
        states[0],
        sums[1],
        x.slot_mask,
        w,
        s,
        1,
        carry[1],
        d_sums[1],
        rows,
        dtype,
    )
    slot_ops.update_backward(
        x.d_query_partials[1], d_states[0], carry[1], states[0], slots, sums[0], x.slot_mask, w, s, 0, carry[0],
        d_sums[0], rows, dtype,
    )  # fmt: skip
    slot_ops.first_query_backward(x.d_query_partials[0], carry[0], slots, w, s, d_slots, rows, dtype)
    found = {"d_slots": d_slots}
    for t in range(2):
        found |= {f"query {t}": queries[t], f"slots {t}": states[t], f"sums {t}": sums[t], f"d_sums {t}": d_sums[t]}
    grads = slot_ops.weight_gradients(rows, w, dtype)
    return found | {f"d_{name}": grad for name, grad in grads._asdict().items() if grad is not None}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_error_is_at_most_twice_that_of_pytorch(case: Case) -> None:
    """In float32 against float64, in the maximum and the root mean square."""
    x = given(case)
    single = x.to(torch.float32)
    assert_error_at_most_twice(by_kernels(single, case), by_pytorch(single, case), by_pytorch(x, case))


def assert_error_at_most_twice(found: Results, plain: Results, exact: Results) -> None:
    assert found.keys() == exact.keys()
    wrong = {}
    for name, want in exact.items():
        assert found[name].shape == want.shape, name
        assert found[name].isfinite().all(), name
        # The interpreter truncates to bfloat16.
        floor = 1e-6 if found[name].dtype == torch.float32 else 2**-7
        for measure in (largest, rms):
            error, allowed = (measure(y[name].double() - want) for y in (found, plain))
            if not error <= 2 * allowed + floor * measure(want):
                wrong[name, measure.__name__] = f"{error:.2g}, PyTorch {allowed:.2g}, of {measure(want):.2g}"
    assert not wrong, wrong


@pytest.mark.parametrize("name", ["plain", "wide", "heads-2", "no-gru", "slots-width-1", "hidden-1"])
def test_bfloat16_allows_tf32(name: str) -> None:
    """Products of 64 terms at once; the interpreter does not round to TF32, so that it is held to float32's error."""
    case = next(case for case in CASES if case.id == name)
    x = given(case).to(torch.bfloat16)
    plain = by_pytorch(x if DEVICE == "cuda" else x.to(torch.float32), case)
    found = by_kernels(x.to(torch.float32), case, torch.bfloat16)
    assert_error_at_most_twice(found, plain, by_pytorch(x.to(torch.float64), case))


@pytest.mark.parametrize("name", ["plain", "wide", "heads-2"])
def test_without_tensor_cores(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on AMD's devices, of which the interpreter takes the products' parts alone."""
    case = next(case for case in CASES if case.id == name)
    x = given(case)
    table = slot_ops.update_config
    other = {"precision": "ieee", "block_chunk": 16, "prefetch": False}
    monkeypatch.setattr(slot_ops, "update_config", lambda *sizes, **options: table(*sizes, **options)._replace(**other))
    single = x.to(torch.float32)
    assert_error_at_most_twice(by_kernels(single, case), by_pytorch(single, case), by_pytorch(x, case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["plain", "wide", "heads-2", "k-means"])
def test_gradients_to_the_weights_are_sums_of_parts(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(next(case for case in CASES if case.id == name), batch=31)
    monkeypatch.setattr(slot_ops, "multiprocessors", lambda device: 132)
    configs = []

    def table(*sizes: Any) -> WeightsConfig:
        configs.append(weights_config(*sizes))
        return configs[-1]

    monkeypatch.setattr(slot_ops, "weights_config", table)
    x = given(case)
    single = x.to(torch.float32)
    assert_error_at_most_twice(by_kernels(single, case, dtype), by_pytorch(single, case), by_pytorch(x, case))
    assert [c.parts > 2 for c in configs] == [True]


@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "ieee"])
@pytest.mark.parametrize("num_rows", [0, 1, 63, 64, 129, 1344, 15360, 10**7])
def test_parts_have_every_row_once(num_rows: int, precision: str) -> None:
    c = weights_config(num_rows, ((64, 65), (65, 192), (192, 64), (128, 64), (64, 128)), 1153, 132, 32, precision)
    assert c.blocks == 2 + 2 * 3 + 3 + 2 + 2 + 19
    assert c.parts * c.rows >= num_rows > (c.parts - 1) * c.rows or num_rows == 0
    assert c.rows % c.block_rows == 0
    assert c.parts <= 2 * 132 / 15
    assert c.parts == 1 or c.rows >= 64


def test_two_calls_agree_to_the_bit() -> None:
    case = Case("", splits=5, heads=2)
    x = given(case).to(torch.float32)
    first, second = by_kernels(x, case), by_kernels(x, case)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_nan_in_one_image_leaves_the_others_untouched() -> None:
    case = Case("", batch=4)
    x = given(case).to(torch.float32)
    poisoned = replace(x, partials=x.partials.clone())
    poisoned.partials[:, 0, 2, 0, 3, 1] = torch.nan
    clean, found = by_kernels(x, case), by_kernels(poisoned, case)
    for name in ("slots 1", "query 1", "d_sums 0", "d_slots"):
        assert found[name][2].isnan().any(), name
        assert torch.equal(clean[name][[0, 1, 3]], found[name][[0, 1, 3]]), name


def test_masked_slots_stay_as_they_are() -> None:
    case = Case("", masked=True)
    x = given(case).to(torch.float32)
    found = by_kernels(x, case)
    assert x.slot_mask is not None
    assert torch.equal(found["slots 1"][~x.slot_mask], x.slots[~x.slot_mask])
    assert largest(found["d_sums 0"].transpose(1, 2)[~x.slot_mask]) == 0


def test_tensors_must_be_contiguous() -> None:
    case = Case("")
    x = given(case).to(torch.float32)
    query = torch.empty(x.partials.shape[2:], device=DEVICE)
    with pytest.raises(ValueError, match="contiguous"):
        slot_ops.first_query(transposed(x.slots), x.weights, settings(case), query, torch.float32)


@pytest.mark.parametrize(
    ("D", "D_in", "hidden", "heads", "served"),
    [
        (64, 64, 128, 1, True),
        (48, 96, None, 8, True),
        (128, 128, 256, 1, True),
        (129, 64, 128, 1, False),
        (64, 192, 128, 1, False),
        (64, 64, 257, 1, False),
        (64, 64, 128, 9, False),
    ],
)
def test_shapes_served(D: int, D_in: int, hidden: int | None, heads: int, served: bool) -> None:
    assert update_serves(D, D_in, hidden, heads) is served


def test_blocks_hold_the_widths() -> None:
    c = update_config(48, 96, 37, splits=5)
    assert (c.block_slots, c.block_inputs, c.block_hidden, c.unroll) == (64, 128, 64, 8)
    assert update_config(1, 1).block_slots == 16


def test_precision_follows_the_dtype_and_the_device() -> None:
    half, single, double_wave = (update_config(64, 64, precision=precision(dtype), **device) for dtype, device in (
        (torch.bfloat16, {}), (torch.float32, {}), (torch.bfloat16, {"warp_size": 64}),
    ))  # fmt: skip
    assert (half.precision, half.block_chunk, half.num_warps) == ("tf32", 64, 8)
    assert (single.precision, single.block_chunk) == ("tf32x3", 32)
    assert (double_wave.precision, double_wave.block_chunk, double_wave.num_warps) == ("ieee", 16, 4)
    assert double_wave.prefetch is False  # the instruction is PTX
    assert precision(torch.float16) == "tf32x3"  # has as many bits as TF32
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert precision(torch.float32) == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
