"""Calls with and without PyTorch's dispatch of the operators give the same, and only those that may do without it."""

from typing import Any

import pytest
import torch
from compare import normal, perturb, results
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from slotattn_fast import SlotAttention, operators

backends = pytest.mark.parametrize("backend", ["torch", "triton"])


def called(backend: str, **call: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    module = perturb(SlotAttention(5, 12, backend=backend))
    return results(module, normal(2, 13, 12).float(), slots_init=normal(2, 5, 12, seed=5).float(), **call)


@backends
@pytest.mark.parametrize("iters", [0, 1, 3])
def test_the_same_numbers(iters: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = called(backend, iters=iters)
    monkeypatch.setattr(operators, "_direct", lambda *tensors: False)
    for name, found in called(backend, iters=iters).items():
        assert torch.equal(found, direct[name]), name


@backends
def test_an_eager_call_is_not_dispatched(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def dispatched(*arguments: object) -> None:
        raise AssertionError

    for name in ("forward", "backward", "absorb", "absorb_backward"):
        monkeypatch.setattr(torch.ops.slotattn_fast, f"{backend}_{name}", dispatched, raising=False)
    called(backend)


class Subclass(Tensor):
    pass


def test_who_looks_on_sees_the_operator() -> None:
    assert operators._direct(torch.ones(1), Parameter(torch.ones(1)))
    assert not operators._direct(torch.ones(1), torch.ones(1).as_subclass(Subclass))
    assert not operators._direct(torch.ones(1, device="meta"))
    x = torch.ones(1)
    with TorchDispatchMode():
        assert not operators._direct(x)


@backends
def test_what_has_no_gradient_gets_no_zeros(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, seen = operators._FUNCTIONS[backend], []
    backward = function.backward

    def recorded(ctx: Any, *grads: Tensor | None) -> Any:
        seen.append([d is None for d in grads])
        return backward(ctx, *grads)

    monkeypatch.setattr(function, "backward", staticmethod(recorded))
    called(backend)
    assert seen == [[False, *(True for _ in operators.KEPT[backend])]]


@backends
def test_gradients_of_the_operator_share_no_memory(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those without it may: PyTorch forbids it to an operator."""
    found = []
    place = operators._placed

    def placed(outputs: list[Tensor], *rest: Any) -> list[Tensor | None]:
        found.append(outputs)
        return place(outputs, *rest)

    monkeypatch.setattr(operators, "_placed", placed)
    monkeypatch.setattr(operators, "_direct", lambda *tensors: False)
    called(backend)
    assert len(found) == 1 + (backend == "triton")  # and those of the projections
    for outputs in found:
        assert len({x.untyped_storage().data_ptr() for x in outputs}) == len(outputs) > 5
