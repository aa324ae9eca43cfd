"""The torch backend against the reference: float64 to rounding, lower precisions by their error, and what it saves."""

from typing import Any

import pytest
import torch
from cases import CASES, HEADS, Case, arguments, pair
from compare import assert_error_at_most_twice, assert_same, largest, normal, perturb, results
from torch import Tensor

import slotattn_fast
from slotattn_fast import reference, torch_backend


@pytest.mark.parametrize("groups", ["one group", "an image a group"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_equals_the_reference(case: Case, groups: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if groups == "an image a group":
        monkeypatch.setattr(torch_backend, "GROUP_BYTES", {"cpu": 1})
        monkeypatch.setattr(torch_backend, "BLOCK_ROWS", 4)
    actual, expected = (results(module, **arguments(case)) for module in pair(case))
    assert all(x.isfinite().all() for x in expected.values())
    assert_same(actual, expected, 1e-9)


def test_groups_of_unequal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("five-images-two-a-group", batch=5)
    monkeypatch.setattr(torch_backend, "GROUP_BYTES", {"cpu": 2 * case.num_inputs * case.dim * 8})
    actual, expected = (results(module, **arguments(case)) for module in pair(case))
    assert_same(actual, expected, 1e-9)


@pytest.mark.parametrize("masks", ["mask", "slot_mask"])
def test_masked_places_get_no_gradient(masks: str) -> None:
    case = Case("", masked=masks == "mask", slots_masked=masks == "slot_mask", slots_given=True)
    given = arguments(case)
    found = results(pair(case)[0], **given)
    if masks == "mask":
        assert largest(found["gradient to inputs"][~given["mask"]]) == 0
        assert largest(found["gradient to inputs"][given["mask"]]) > 0
    else:
        kept = given["slot_mask"]
        assert torch.equal(found["output 0"][~kept], given["slots_init"][~kept])
        assert not torch.equal(found["output 0"][kept], given["slots_init"][kept])


@pytest.mark.parametrize("wanted", ["inputs", "slots_init", "parameters", "one parameter"])
def test_gradient_to_some_only(wanted: str) -> None:
    case = Case("", slots_given=True)
    module = pair(case)[0]
    given = arguments(case)
    everything = results(module, **given)
    for name, p in module.named_parameters():
        p.requires_grad_(wanted == "parameters" or (wanted == "one parameter" and name == "to_k.weight"))
    x = given["inputs"].clone().requires_grad_(wanted == "inputs")
    slots = given["slots_init"].clone().requires_grad_(wanted == "slots_init")
    out = module(x, slots_init=slots)
    (out * normal(*out.shape, seed=0)).sum().backward()
    leaves = {"inputs": x, "slots_init": slots, **dict(module.named_parameters())}
    drawn = ("slots_mu", "slots_logsigma")  # not used when the initial slots are given
    got = {f"gradient to {name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    assert got.keys() == {f"gradient to {n}" for n, leaf in leaves.items() if leaf.requires_grad and n not in drawn}
    for name, grad in got.items():
        torch.testing.assert_close(grad, everything[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    expected = perturb(reference.SlotAttention(5, 24))
    actual = slotattn_fast.SlotAttention(5, 24)
    actual.load_state_dict(expected.state_dict())
    given = {"inputs": normal(3, 301, 24).float(), "slots_init": normal(3, 5, 24, seed=5).float()}
    with torch.autocast("cpu", dtype):
        fast, plain = results(actual, **given), results(expected, **given)
    exact = results(expected.double(), **{name: x.double() for name, x in given.items()})
    assert_error_at_most_twice(fast, plain, exact)


def test_autocast_takes_inputs_of_the_lower_type() -> None:
    """As an encoder under autocast hands them over."""
    module = slotattn_fast.SlotAttention(5, 24)
    slots_init, inputs = normal(3, 5, 24, seed=5).float(), normal(3, 31, 24).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = results(module, inputs, slots_init=slots_init)
    assert found["gradient to inputs"].dtype == torch.bfloat16
    assert found["gradient to to_q.weight"].dtype == torch.float32
    assert_same(found, results(module, inputs.float(), slots_init=slots_init), 1e-2)


@pytest.mark.parametrize("options", [{}, HEADS, {"aggregation": "sum"}, {"use_norm": False}], ids=str)
@pytest.mark.parametrize("return_all_slots", [False, True])
def test_nothing_of_size_n_but_the_inputs_is_saved(options: dict[str, Any], return_all_slots: bool) -> None:
    B, N = 2, 4000
    module = slotattn_fast.SlotAttention(3, 8, **options)
    inputs = normal(B, N, 8).float().requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        module(inputs, return_all_slots=return_all_slots)
    large = [x for x in saved if x.numel() >= N]
    assert large
    assert all(x.data_ptr() == inputs.data_ptr() for x in large), [x.shape for x in large]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        reference.SlotAttention(3, 8)(inputs)
    assert sum(x.numel() >= N for x in saved) > 10 * len(large)  # the hooks do see what is saved


@pytest.mark.parametrize("options", [{}, {"heads": 2, "eps_in": "denominator", "eps": 0.1}], ids=str)
def test_second_derivatives(options: dict[str, Any]) -> None:
    module = perturb(slotattn_fast.SlotAttention(2, 4, iters=2, hidden_dim=4, **options).double())
    inputs, slots_init = normal(2, 3, 4).requires_grad_(), normal(2, 2, 4, seed=5).requires_grad_()
    names, weights = zip(*module.named_parameters(), strict=True)

    def call(inputs: Tensor, slots_init: Tensor, *weights: Tensor) -> Tensor:
        given = {"slots_init": slots_init}
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (inputs,), given)

    assert torch.autograd.gradgradcheck(call, (inputs, slots_init, *weights), atol=1e-4, rtol=1e-4, fast_mode=True)


def test_graph_is_good_for_two_backward_passes() -> None:
    module = slotattn_fast.SlotAttention(3, 8)
    x = normal(2, 9, 8).float().requires_grad_()
    loss = module(x).square().sum()
    first, second = (torch.autograd.grad(loss, [x, module.to_k.weight], retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_inputs_changed_in_place_are_noticed() -> None:
    module = slotattn_fast.SlotAttention(3, 8)
    x = normal(2, 9, 8).float()
    loss = module(x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("return_all_slots", [False, True])
def test_slots_may_be_changed_in_place(return_all_slots: bool) -> None:
    module = slotattn_fast.SlotAttention(3, 8)
    x, slots_init = normal(2, 9, 8).float(), normal(2, 3, 8, seed=5).float()
    expected = torch.autograd.grad((2 * module(x, slots_init=slots_init)).sum(), module.to_k.weight)
    slots = module(x, slots_init=slots_init, return_all_slots=return_all_slots)
    slots.mul_(2)
    found = torch.autograd.grad((slots[-1] if return_all_slots else slots).sum(), module.to_k.weight)
    torch.testing.assert_close(found, expected)


def test_initial_slots_are_not_changed() -> None:
    module = slotattn_fast.SlotAttention(3, 8)
    x, slots_init = normal(2, 9, 8).float(), normal(2, 3, 8, seed=5).float()
    given = x.clone(), slots_init.clone()
    for iters in (0, 3):
        module(x, slots_init=slots_init, iters=iters, return_attn="all")
    assert torch.equal(x, given[0])
    assert torch.equal(slots_init, given[1])
