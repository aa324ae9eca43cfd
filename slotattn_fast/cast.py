"""Many small tensors to another type in one launch, and their gradients back in one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """`x.to(dtype)` of each; differentiable, twice.

    Where a compiler looks on, which fuses them itself, or `transformed`, it is just that.
    """
    if all(x.dtype == dtype for x in tensors):
        return tensors
    if torch.compiler.is_compiling() or transformed() or len({(x.dtype, x.device) for x in tensors}) != 1:
        return [x.to(dtype) for x in tensors]
    return _Cast.apply(dtype, *tensors)


def transformed() -> bool:
    """Whether torch.func or forward-mode differentiation looks on, which know rules for PyTorch's own operators alone.

    Of the others both would drop a derivative in silence. A compiler sees the answer to be the same.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = tensors[0].dtype
        ctx.set_materialize_grads(False)
        return _copies(tensors, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [d for d in grads if d is not None]
        if torch.is_grad_enabled() or any(torch._C._functorch.is_legacy_batchedtensor(d) for d in there):
            results = iter([d.to(ctx.dtype) for d in there])
        else:
            results = iter(_copies(there, ctx.dtype))
        return None, *(None if d is None else next(results) for d in grads)


def _copies(tensors: tuple[Tensor, ...] | list[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = tuple(torch.empty_like(x, dtype=dtype) for x in tensors)
    if copies:
        torch._foreach_copy_(copies, tensors)
    return copies
