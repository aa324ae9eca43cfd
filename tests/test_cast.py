"""One launch for many casts, and what autograd makes of it."""

from collections import Counter
from typing import Any

import pytest
import torch
from compare import normal
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from slotattn_fast.cast import cast


class Counted(TorchDispatchMode):
    """The operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def tensors(dtype: torch.dtype) -> list[Tensor]:
    """One across its memory, one that needs no gradient, and one empty."""
    shapes = ((3, 5), (4,), (2, 6), (0, 3))
    found = [normal(*shape, seed=i).to(dtype).requires_grad_(i != 1) for i, shape in enumerate(shapes)]
    found[2] = found[2].detach().mT.requires_grad_()
    return found


@pytest.mark.parametrize(("before", "after"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float16)])
def test_equals_the_casts_one_by_one(before: torch.dtype, after: torch.dtype) -> None:
    given = tensors(before)
    with Counted() as counted:
        found = cast(given, after)
        sum((x * x).sum() for x in found[2:]).backward()
    assert counted.calls["_foreach_copy_"] == 2
    assert counted.calls["_to_copy"] == 0
    for x, y in zip(given, found, strict=True):
        assert torch.equal(x.to(after), y)
    assert given[0].grad is None  # unused
    assert given[1].grad is None  # asks for none
    assert given[2].grad.dtype == before
    assert torch.equal(given[2].grad, (2 * given[2].to(after)).to(before))


def test_the_same_type_and_mixed_types() -> None:
    given = tensors(torch.float32)
    assert all(x is y for x, y in zip(cast(given, torch.float32), given, strict=True))
    mixed = [given[0], given[2].bfloat16()]
    assert [x.dtype for x in cast(mixed, torch.float64)] == [torch.float64] * 2
    assert [*cast([], torch.float64)] == []


def test_forward_mode() -> None:
    x, y = normal(3, seed=1), normal(3, seed=2)
    with forward_ad.dual_level():
        found = cast([forward_ad.make_dual(x, y), y], torch.float32)
        assert torch.equal(forward_ad.unpack_dual(found[0]).tangent, y.float())
        assert forward_ad.unpack_dual(found[1]).tangent is None


def test_second_derivatives_batched_gradients_and_torch_func() -> None:
    (x,) = given = [normal(3, 4, seed=1).requires_grad_()]

    def cubes(x: Tensor) -> Tensor:
        return (cast([x], torch.float32)[0] ** 3).sum()

    assert torch.autograd.gradgradcheck(lambda x: cast([x], torch.float32)[0].double() ** 3, given, eps=1e-2, atol=1e-2)
    assert torch.allclose(torch.func.grad(cubes)(x), 3 * x**2)
    basis = torch.eye(3, 12, dtype=torch.float32).view(3, 3, 4)
    (batched,) = torch.autograd.grad(cast(given, torch.float32)[0] ** 2, x, basis, is_grads_batched=True)
    assert torch.allclose(batched, basis * 2 * x)
