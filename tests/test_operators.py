"""Calls with and without PyTorch's dispatch of the operators give the same, and only those that may do without it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from compare import DEVICE, normal, perturb, results
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from slotattn_fast import SlotAttention, matching, operators
from slotattn_fast.mixture import reconstruction_loss

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


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "dispatched"])
def test_a_launch_has_the_device_of_its_tensors_as_the_current_one(
    direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyTorch's own operators have it; Triton launches to the current device, wherever the tensors are."""
    jit, interpreter = (pytest.importorskip(f"triton.runtime.{name}") for name in ("jit", "interpreter"))
    entered: list[torch.device] = []
    launched: dict[str, set[bool]] = {}

    @contextmanager
    def device_of(x: Tensor) -> Iterator[None]:
        entered.append(x.device)
        yield
        entered.pop()

    def seen(name: str, function: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            kernel = name or arguments[0].fn.__name__
            launched.setdefault(kernel, set()).add(bool(entered))
            return function(*arguments, **options)

        return run

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    kind = interpreter.InterpretedFunction if DEVICE == "cpu" else jit.JITFunction
    monkeypatch.setattr(kind, "run", seen("", kind.run))
    monkeypatch.setattr(matching, "_by_scipy", seen("match_kernel", matching._by_scipy))  # on a CPU
    if not direct:
        monkeypatch.setattr(operators, "_direct", lambda *tensors: False)
    called("triton", return_attn=True)
    maps = normal(2, 5, 4, 6, 6).float().requires_grad_()
    reconstruction_loss(maps, normal(2, 3, 6, 6).float(), "triton").backward()
    matching.match(normal(2, 3, 4))
    kernels = ["match_kernel", "attend_map_kernel"]
    for both in ("absorb_{}", "query_{}", "attend_{}", "update_{}", "mixture_loss_{}"):
        kernels += [f"{both.format(direction)}_kernel" for direction in ("fwd", "bwd")]
    assert launched == {name: {True} for name in [*kernels, "weights_bwd_kernel"]}
    assert not entered


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


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, d_x: Tensor) -> None:
        return None


@backends
def test_no_gradient_at_all(backend: str) -> None:
    """As from a layer after it that hands none on, or after no iteration."""
    module, inputs = SlotAttention(5, 12, backend=backend), normal(2, 13, 12).float().requires_grad_()
    NoGradient.apply(module(inputs)).sum().backward()
    assert inputs.grad is None
    slots = module(inputs, iters=0, return_all_slots=True)
    assert torch.autograd.grad(slots.sum(), inputs, create_graph=True, allow_unused=True) == (None,)


@pytest.mark.parametrize(("backend", "return_attn"), [("torch", False), ("triton", False), ("triton", True)])
def test_first_derivatives_inside_autocast_can_be_differentiated(backend: str, return_attn: bool) -> None:
    module, slots_init = SlotAttention(3, 8, backend=backend), normal(2, 3, 8, seed=5).float()

    def both(autocast: bool) -> list[Tensor]:
        x = normal(2, 5, 8).float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = module(x, slots_init=slots_init, return_attn=return_attn)
            result = found[1] if return_attn else found
            (first,) = torch.autograd.grad(result.square().sum(), x, create_graph=True)
        return [first, *torch.autograd.grad(first.square().sum(), (x, module.to_q.weight))]

    for found, expected in zip(both(True), both(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


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
