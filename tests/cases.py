"""The table of cases that every backend is held against the reference with: one stressed axis a row."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from compare import DEVICE, assert_error_at_most_twice, normal, perturb, results
from torch import Tensor

import slotattn_fast
from slotattn_fast import reference


def as_map(x: Tensor) -> Tensor:
    """[B, N, D] as the view of a feature map in NCHW memory."""
    return x.mT.contiguous().mT


def every_other(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, torch.nan)], 2).flatten(1, 2)[:, ::2]


def expanded(x: Tensor) -> Tensor:
    """The first image for every image of the batch, with stride 0."""
    return x[:1].expand_as(x)


def some(*shape: int) -> Tensor:
    """A mask with something left in every row but the last, which is all masked."""
    mask = normal(*shape, seed=3) > 0
    mask[:, 0], mask[-1] = True, False
    return mask


@dataclass(frozen=True)
class Case:
    """One stressed axis; everything else is small and no power of two."""

    id: str
    options: dict[str, Any] = field(default_factory=dict)  # of the constructor
    call: dict[str, Any] = field(default_factory=dict)  # of forward
    batch: int = 3
    num_inputs: int = 13
    num_slots: int = 5
    dim: int = 12
    masked: bool = False
    slots_masked: bool = False
    slots_given: bool = False
    layout: Callable[[Tensor], Tensor] = lambda x: x
    summed: bool = False


HEADS = {"heads": 3, "dim_head": 5}
CASES = [
    Case("plain"),
    Case("one-slot", num_slots=1),
    Case("two-slots", num_slots=2),
    Case("slots-33", num_slots=33),
    Case("slots-64", num_slots=64, num_inputs=31),
    Case("one-input", num_inputs=1),
    Case("inputs-1001", num_inputs=1001),
    Case("inputs-12", num_inputs=12),
    Case("inputs-4096", num_inputs=4096),
    Case("inputs-4099", num_inputs=4099),
    Case("one-image", batch=1),
    Case("no-image", batch=0),
    Case("inputs-narrower", {"input_dim": 7}),
    Case("inputs-wider", {"input_dim": 31}),
    Case("width-1", {"input_dim": 1}, dim=1),
    Case("hidden-wider", {"hidden_dim": 37}),
    *(Case(f"iterations-{t}", call={"iters": t}) for t in (0, 1, 2, 7)),
    Case("heads", HEADS),
    Case("heads-of-dim", {"heads": 4}),
    Case("heads-inputs-wider", {**HEADS, "input_dim": 17}),
    Case("no-bias", {"bias": False}),
    Case("paper", {"bias": False, "norm_eps": 1e-3, "weight_init": "tensorflow"}),
    Case("scale", {"scale": 1.0}),
    Case("eps-0", {"eps": 0.0}),
    Case("eps-large", {"eps": 0.3}),
    Case("eps-large-denominator", {"eps": 0.3, "eps_in": "denominator"}),
    Case("eps-large-heads", {"eps": 0.3, **HEADS}),
    Case("sum", {"aggregation": "sum"}),
    Case("sum-heads", {"aggregation": "sum", **HEADS}),
    Case("sum-norm", {"aggregation": "sum_norm"}),
    Case("sum-norm-heads", {"aggregation": "sum_norm", **HEADS}),
    Case("softmax-over-inputs", {"softmax_over": "inputs", "aggregation": "sum"}),
    Case("softmax-over-inputs-heads", {"softmax_over": "inputs", "aggregation": "sum", **HEADS}),
    Case("no-gru", {"use_gru": False}),
    Case("no-gru-heads", {"use_gru": False, **HEADS}),
    Case("no-gru-sum-norm", {"use_gru": False, "aggregation": "sum_norm"}),
    Case("no-mlp", {"use_mlp": False}),
    Case("no-gru-no-mlp", {"use_gru": False, "use_mlp": False}),
    Case("no-norm", {"use_norm": False}),
    Case("no-norm-inputs-wider", {"use_norm": False, "input_dim": 17}),
    Case("no-projections", {"use_projections": False}),
    Case("k-means", dict.fromkeys(("use_gru", "use_mlp", "use_norm", "use_projections"), False)),
    Case("per-slot-gaussians", {"slot_init": "per_slot"}),
    Case("slot-vectors", {"slot_init": "vectors"}),
    Case("slots-given", slots_given=True),
    Case("slots-given-all-slots", call={"return_all_slots": True}, slots_given=True),
    Case("all-slots-heads", HEADS, {"return_all_slots": True}),
    Case("mask", masked=True),
    Case("mask-eps-large", {"eps": 0.3}, masked=True),
    Case("mask-eps-denominator", {"eps": 0.3, "eps_in": "denominator"}, masked=True),
    Case("mask-eps-0", {"eps": 0.0}, masked=True),
    Case("mask-sum", {"aggregation": "sum"}, masked=True),
    Case("mask-heads", HEADS, masked=True),
    Case("mask-no-norm", {"use_norm": False}, masked=True),
    Case("mask-softmax-over-inputs", {"softmax_over": "inputs", "aggregation": "sum"}, masked=True),
    Case("slot-mask", slots_masked=True, slots_given=True),
    Case("slot-mask-eps-large", {"eps": 0.3}, slots_masked=True, slots_given=True),
    Case("slot-mask-all-slots", call={"return_all_slots": True}, slots_masked=True, slots_given=True),
    Case("slot-mask-no-gru", {"use_gru": False}, slots_masked=True, slots_given=True),
    Case("both-masks", masked=True, slots_masked=True, slots_given=True),
    Case("both-masks-heads-inputs-12", {**HEADS, "eps": 0.3}, masked=True, slots_masked=True, num_inputs=12),
    Case("both-masks-heads", {**HEADS, "eps": 0.3}, masked=True, slots_masked=True),
    Case("attention", call={"return_attn": True}),
    Case("attention-over-inputs", {"eps": 0.3}, {"return_attn": "last", "attn_over": "inputs"}),
    Case("attention-all", call={"return_attn": "all", "return_all_slots": True}, slots_given=True),
    Case("attention-heads", HEADS, {"return_attn": True}),
    Case("attention-all-heads", {**HEADS, "eps_in": "denominator"}, {"return_attn": "all", "attn_over": "inputs"}),
    Case("attention-one-iteration", call={"return_attn": True, "iters": 1}),
    Case("attention-masks", call={"return_attn": "all"}, masked=True, slots_masked=True),
    Case("attention-over-inputs-masks", {"eps": 0.3}, {"return_attn": True, "attn_over": "inputs"}, masked=True),
    Case("attention-sum", {"aggregation": "sum"}, {"return_attn": "all", "attn_over": "inputs"}),
    Case("feature-map", layout=as_map),
    Case("every-other-input", layout=every_other),
    Case("expanded-inputs", layout=expanded),
    Case("expanded-gradients", summed=True),
    Case("expanded-gradients-all-slots", call={"return_all_slots": True}, summed=True),
]


def pair(case: Case, backend: str = "auto") -> tuple[slotattn_fast.SlotAttention, reference.SlotAttention]:
    """Both modules in float64 with the same weights, none of them 0 or 1."""
    torch.manual_seed(0)
    expected = perturb(reference.SlotAttention(case.num_slots, case.dim, **case.options).to(DEVICE, torch.float64))
    actual = slotattn_fast.SlotAttention(case.num_slots, case.dim, backend=backend, **case.options)
    actual.to(DEVICE, torch.float64)
    actual.load_state_dict(expected.state_dict(), strict=True)
    return actual, expected


def arguments(case: Case) -> dict[str, Any]:
    arguments: dict[str, Any] = dict(case.call, layout=case.layout, summed=case.summed)
    arguments["inputs"] = normal(case.batch, case.num_inputs, case.options.get("input_dim", case.dim)) * 2 + 1
    if case.masked:
        arguments["mask"] = some(case.batch, case.num_inputs)
        arguments["inputs"][~arguments["mask"]] = torch.nan
    if case.slots_masked:
        arguments["slot_mask"] = some(case.batch, case.num_slots)
    if case.slots_given:
        arguments["slots_init"] = normal(case.batch, case.num_slots, case.dim, seed=5)
    return arguments


# Inputs [B, N, D_in] by their offset in standard deviations, and rows of equal features, whose variance is 0.
HARD_INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "offset-0": lambda x: x,
    "offset-1": lambda x: x + 1,
    "offset-10": lambda x: x + 10,
    "offset-100": lambda x: x + 100,
    "large": lambda x: x * 1e4,
    "small": lambda x: x * 1e-4,
    "equal-features": lambda x: (3.3 * x[..., :1]).expand_as(x),
    "equal-features-offset-10": lambda x: (x[..., :1] + 10).expand_as(x),
}


def assert_errors_like_the_references(
    backend: str, dtype: torch.dtype, hard: Callable[[Tensor], Tensor], heads: int | None
) -> None:
    """At most twice those of the reference in `dtype`, against it in float64 on the same rounded numbers.

    In the maximum and the root mean square; over a few draws, and with smooth weights, as the largest error of float32
    is a matter of luck otherwise. Several blocks of inputs, the last not full. `hard` is one of HARD_INPUTS.
    """
    num_inputs = 301 if DEVICE == "cuda" else 150  # two blocks, or ten of the smallest, for the interpreter
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        expected = perturb(reference.SlotAttention(5, 24, input_dim=40, heads=heads), seed, 0.05).to(DEVICE, dtype)
        actual = slotattn_fast.SlotAttention(5, 24, input_dim=40, heads=heads, backend=backend).to(DEVICE, dtype)
        actual.load_state_dict(expected.state_dict())
        given = {
            "inputs": hard(normal(3, num_inputs, 40, seed=seed)).to(dtype),
            "slots_init": normal(3, 5, 24, seed=5 + seed).to(dtype),
        }
        fast, plain = results(actual, **given), results(expected, **given)
        assert fast["output 0"].dtype == dtype
        found.append((fast, plain, results(expected.double(), **{name: x.double() for name, x in given.items()})))
    assert_error_at_most_twice(
        *({name: torch.stack([x[name] for x in part]) for name in part[0]} for part in zip(*found, strict=True))
    )
