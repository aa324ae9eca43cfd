"""Many small tensors to another type in one launch, and their gradients back in one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """`x.to(dtype)` of each; differentiable, twice.

    Where a compiler, a transformation of torch.func or forward-mode differentiation looks on, it is just that: the
    first fuses them itself, and the others know no rule for anything else.
    """
    if all(x.dtype == dtype for x in tensors):
        return tensors
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return [x.to(dtype) for x in tensors]
    if forward_ad._current_level >= 0 or len({(x.dtype, x.device) for x in tensors}) != 1:
        return [x.to(dtype) for x in tensors]
    return _Cast.apply(dtype, *tensors)


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
