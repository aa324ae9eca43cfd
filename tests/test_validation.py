"""Bad input: an error names the argument, what came and what was expected, the same in the module and the function."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from slotattn_fast import MultiHeadSlotAttention, SlotAttention, explain_backend, reference, slot_attention

B, N, K, D, D_IN = 3, 11, 4, 12, 9


def good() -> dict[str, Any]:
    return {"inputs": torch.randn(B, N, D_IN), "slots_init": torch.randn(B, K, D)}


def by_module(*, inputs: Tensor, **call: Any) -> Any:
    return SlotAttention(K, D, input_dim=D_IN)(inputs, **call)


def by_function(*, inputs: Tensor, slots_init: Tensor, **call: Any) -> Any:
    params = dict(SlotAttention(K, D, input_dim=D_IN).named_parameters())
    return slot_attention(inputs, slots_init, params, **call)


# What is changed in a good call; the error; what its message has to say.
CALLS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "inputs-array": ({"inputs": [[1.0]]}, TypeError, r"inputs must be a tensor.*got list"),
    "inputs-rank-2": (
        {"inputs": torch.randn(N, D_IN)},
        ValueError,
        r"inputs must have 3 dim.*got shape \[11, 9",
    ),
    "inputs-rank-4": (
        {"inputs": torch.randn(B, 2, N, D_IN)},
        ValueError,
        r"inputs must have 3.*got.*\[3, 2, 11, 9",
    ),
    "inputs-integers": ({"inputs": torch.ones(B, N, D_IN).long()}, TypeError, r"inputs must be float.*got torch.int64"),
    "inputs-width": ({"inputs": torch.randn(B, N, 7)}, ValueError, r"input.*(\b9\b.*\b7\b|\b7\b.*\b9\b)"),
    "no-inputs": ({"inputs": torch.randn(B, 0, D_IN)}, ValueError, r"inputs must have at least one.*\[3, 0, 9\]"),
    "dtype-mix": ({"inputs": torch.randn(B, N, D_IN).double()}, TypeError, r"must be torch.float64 as inputs.*float32"),
    "slots-array": ({"slots_init": [[1.0]]}, TypeError, r"^slots(_init)? must be a tensor.*got list"),
    "slots-rank": (
        {"slots_init": torch.randn(K, D)},
        ValueError,
        r"^slots(_init)? must have.*B = 3.*got \[4, 12",
    ),
    "slots-batch": (
        {"slots_init": torch.randn(1, K, D)},
        ValueError,
        r"^slots(_init)? must have.*B = 3.*\[1, 4, 12",
    ),
    "slots-width": ({"slots_init": torch.randn(B, K, 7)}, ValueError, r"\b12\b.*\b7\b|\b7\b.*\b12\b"),
    "slots-dtype": (
        {"slots_init": torch.randn(B, K, D).half()},
        TypeError,
        r"slots must be torch.float32.*got.*float16",
    ),
    "no-slots": (
        {"slots_init": torch.randn(B, 0, D)},
        ValueError,
        r"^slots(_init)? must have at least one.*\[3, 0, 12",
    ),
    "iters-bool": ({"iters": True}, TypeError, r"^iters must be an integer, got True"),
    "iters-negative": ({"iters": -1}, ValueError, r"iters must be at least 0, got -1"),
    "mask-list": ({"mask": [True]}, TypeError, r"^mask must be a bool tensor.*got list"),
    "mask-floats": ({"mask": torch.ones(B, N)}, TypeError, r"^mask must be a bool tensor.*got torch.float32"),
    "mask-shape": ({"mask": torch.ones(B, N + 1).bool()}, ValueError, r"^mask must.*\[3, 11\], got \[3, 12\]"),
    "mask-rank": ({"mask": torch.ones(N).bool()}, ValueError, r"^mask must have shape.*\[3, 11\], got \[11\]"),
    "slot-mask-integers": ({"slot_mask": torch.ones(B, K).int()}, TypeError, r"^slot_mask.*got torch.int32"),
    "slot-mask-shape": ({"slot_mask": torch.ones(B, N).bool()}, ValueError, r"^slot_mask.*\[3, 4\], got \[3, 11\]"),
    "mask-device": ({"mask": torch.ones(B, N, device="meta").bool()}, ValueError, r"mask must be on cpu.*got meta"),
    "return-attn": ({"return_attn": "first"}, ValueError, r"return_attn must be.*\"all\", got 'first'"),
    "return-attn-of-nothing": ({"return_attn": True, "iters": 0}, ValueError, r"return_attn.*at least one.*iters=0"),
    "attn-over": ({"return_attn": True, "attn_over": "heads"}, ValueError, r"attn_over must be.*got 'heads'"),
}


@pytest.mark.parametrize("call", [by_module, by_function])
@pytest.mark.parametrize(("change", "error", "message"), CALLS.values(), ids=CALLS)
def test_bad_call(call: Any, change: dict[str, Any], error: type[Exception], message: str) -> None:
    call(**good())
    with pytest.raises(error, match=message):
        call(**{**good(), **change})


# The same for what only the module, or only the function, takes.
MODULE_CALLS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "contradiction": (
        {"slots_init": torch.randn(B, 5, D), "num_slots": 6},
        ValueError,
        r"slots_init.*6.*num_slots.*\[3, 5",
    ),
    "slots-array": ({"slots_init": [[1.0]], "num_slots": 6}, TypeError, r"slots_init must be a tensor.*got list"),
    "slots-float": ({"num_slots": 2.0}, TypeError, r"num_slots must be an integer, got 2.0"),
    "inputs-device": (
        {"inputs": torch.randn(B, N, D_IN, device="meta")},
        ValueError,
        r"inputs must be on cpu.*got meta",
    ),
    "generator": ({"generator": 3}, TypeError, r"generator must be a torch.Generator or None, got 3"),
    "no-slots": ({"num_slots": 0}, ValueError, r"num_slots must be at least 1, got 0"),
    "slots-negative": ({"num_slots": -1}, ValueError, r"num_slots must be at least 1, got -1"),
    "inputs-width": (
        {"inputs": torch.randn(B, N, 7)},
        ValueError,
        r"inputs must have width 9 \(input_dim\).*\[3, 11, 7\]",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), MODULE_CALLS.values(), ids=MODULE_CALLS)
def test_bad_call_of_the_module(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        by_module(**{"inputs": torch.randn(B, N, D_IN), **change})


@pytest.mark.parametrize("slot_init", ["per_slot", "vectors"])
def test_other_number_of_slots_than_learned(slot_init: str) -> None:
    module = SlotAttention(K, D, slot_init=slot_init)
    with pytest.raises(ValueError, match=r"num_slots must be 4.*got 5"):
        module(torch.randn(B, N, D), 5)


PARAMS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "heads-0": ({}, {"heads": 0}, r"heads must be at least 1, got 0"),
    "heads-do-not-divide": ({}, {"heads": 5}, r"heads must divide the projections' width 12, got heads=5"),
    "heads-not-combined": ({"combine_heads.weight": None}, {"heads": 3}, r"heads.*combine_heads"),
    "unknown": ({"to_w.weight": torch.ones(1)}, {}, r"'to_w.weight', which is no parameter"),
    "missing": ({"to_k.weight": None}, {}, r"params lacks to_k.weight"),
    "shape": ({"gru.weight_hh": torch.randn(36, 13)}, {}, r"gru.weight_hh.*\[36, 12\].*got \[36, 13\]"),
    "softmax-over": ({}, {"softmax_over": "rows"}, r"softmax_over must be one of 'slots', 'inputs', got 'rows'"),
    "aggregation": ({}, {"aggregation": "max"}, r"aggregation must be one of 'mean'.*got 'max'"),
    "eps-in": ({}, {"eps_in": "top"}, r"eps_in must be one of 'numerator'.*got 'top'"),
    "eps-negative": ({}, {"eps": -1e-8}, r"^eps must be at least 0, got -1e-08"),
    "backend": ({}, {"backend": "cuda"}, r"backend must be one of 'auto', 'triton', 'torch', got 'cuda'"),
}


@pytest.mark.parametrize(("change", "call", "message"), PARAMS.values(), ids=PARAMS)
def test_bad_params_or_settings_of_the_function(change: dict[str, Any], call: dict[str, Any], message: str) -> None:
    params = {**dict(SlotAttention(K, D, input_dim=D_IN).named_parameters()), **change}
    params = {name: p for name, p in params.items() if p is not None}
    with pytest.raises(ValueError, match=message):
        slot_attention(torch.randn(B, N, D_IN), torch.randn(B, K, D), params, **call)


@pytest.mark.parametrize(
    ("params", "call", "message"),
    [
        ({"to_q.bias": None}, {}, r"params\['to_q.bias'\] must be a tensor, got NoneType"),
        ({}, {"heads": 1.0}, r"^heads must be an integer, got 1.0"),
        ({}, {"eps": "a"}, r"^eps must be a number, got 'a'"),
        ({}, {"norm_eps": None}, r"^norm_eps must be a number, got None"),
    ],
)
def test_params_or_settings_of_another_type(params: dict[str, Any], call: dict[str, Any], message: str) -> None:
    params = {**dict(SlotAttention(K, D, input_dim=D_IN).named_parameters()), **params}
    with pytest.raises(TypeError, match=message):
        slot_attention(torch.randn(B, N, D_IN), torch.randn(B, K, D), params, **call)


@pytest.mark.parametrize("kind", [SlotAttention, reference.SlotAttention], ids=["fast", "reference"])
@pytest.mark.parametrize("name", ["eps", "norm_eps", "scale"])
def test_settings_of_the_constructor_of_another_type(kind: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a number.*got 'x'"):
        kind(K, D, **{name: "x"})


def test_explain_backend_of_no_tensor() -> None:
    with pytest.raises(TypeError, match=r"inputs must be a tensor \[B, N, D_in\], got tuple"):
        explain_backend((2, 3, 4))


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "num-slots": ({"num_slots": 0}, r"num_slots must be at least 1, got 0"),
    "dim": ({"dim": 0}, r"dim must be at least 1, got 0"),
    "hidden-dim": ({"hidden_dim": -2}, r"hidden_dim must be at least 1, got -2"),
    "input-dim": ({"input_dim": 0}, r"input_dim must be at least 1, got 0"),
    "iters": ({"iters": -1}, r"iters must be at least 0, got -1"),
    "eps": ({"eps": -1.0}, r"^eps must be at least 0, got -1"),
    "eps-nan": ({"eps": math.nan}, r"^eps must be at least 0, got nan"),
    "norm-eps": ({"norm_eps": -1.0}, r"^norm_eps must be at least 0, got -1"),
    "heads-do-not-divide": ({"heads": 5}, r"heads must divide dim.*heads=5, dim=12"),
    "heads-0": ({"heads": 0}, r"heads.* must be at least 1, got heads=0"),
    "dim-head-alone": ({"dim_head": 3}, r"dim_head=3 needs heads"),
    "dim-head-0": ({"heads": 2, "dim_head": 0}, r"dim_head must be at least 1.*dim_head=0"),
    "weight-init": ({"weight_init": "jax"}, r"weight_init must be one of 'torch', 'tensorflow', got 'jax'"),
    "slot-init": ({"slot_init": "zeros"}, r"slot_init must be one of 'shared'.*got 'zeros'"),
    "softmax-over": ({"softmax_over": "rows"}, r"softmax_over must be one of.*got 'rows'"),
    "no-projections-heads": ({"use_projections": False, "heads": 2}, r"use_projections=False needs.*heads=2"),
    "no-projections-width": ({"use_projections": False, "input_dim": 9}, r"use_projections=False needs.*input_dim=9"),
}


@pytest.mark.parametrize("kind", [SlotAttention, reference.SlotAttention], ids=["fast", "reference"])
@pytest.mark.parametrize(("change", "message"), SETTINGS.values(), ids=SETTINGS)
def test_bad_settings_of_the_constructor(kind: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"num_slots": K, "dim": D, **change})


def test_bad_settings_of_the_class_with_heads() -> None:
    with pytest.raises(ValueError, match=r"heads.* must be at least 1, got heads=0"):
        MultiHeadSlotAttention(K, D, heads=0)
    with pytest.raises(ValueError, match=r"backend must be one of.*got 'cuda'"):
        MultiHeadSlotAttention(K, D, backend="cuda")
