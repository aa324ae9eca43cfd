"""Bipartite matching of predictions with targets: exact linear assignment in a batch, on a GPU without leaving it."""

from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from .kernels.device import on_its_device
from .kernels.support import why_not_matching

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def match(cost: Tensor, check: bool = True) -> tuple[Tensor, Tensor]:
    """The pairs (row, column), each row and each column in one pair at most, at the least sum of costs.

    As `scipy.optimize.linear_sum_assignment` for every problem of a batch, which does it on a CPU. On a GPU a Triton
    kernel does; with `check=False` nothing there waits for the device, so that it can be part of a CUDA graph, of
    `torch.compile(fullgraph=True)` and of `torch.export`.

    Args:
        cost: [B, R, C] of B problems with R rows and C columns; float64, float32, bfloat16 or float16, any strides. On
            a GPU, R and C are 64 at most. The sums are in float64.
        check: whether costs that are not finite are an error, for which one flag is read from the device. Without, a
            problem with any gets the pairs (0, 0), (1, 1) and so on: a loss gathered by them is not finite if they are
            among the costs of these pairs.

    Returns:
        rows and columns, both int64 [B, min(R, C)], the rows ascending. Nothing is differentiable by `cost`. Of several
        assignments that cost the same it may be any.

    Raises:
        ValueError: a shape does not fit, or a cost is not finite. TypeError: a type does not fit. RuntimeError: the
        kernel cannot serve the call on this device; it says why.

    Source: the paper, section 2.3; Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on
    Aerospace and Electronic Systems 52 (2016).
    """
    _check(cost)
    B, R, C = cost.shape
    if cost.device.type != "cpu" and (reason := why_not_matching(cost.device.type, R, C)):
        raise RuntimeError(f"cost: {reason}; match a copy, cost.cpu()")
    if check:
        _check_finite(cost)
    cost = cost.detach()
    if R > C:
        rows, columns = torch.ops.slotattn_fast.match(cost.mT).sort(1)
        return rows, columns
    columns = torch.ops.slotattn_fast.match(cost)
    return torch.arange(R, device=cost.device).expand(B, R), columns


def _check(cost: Tensor) -> None:
    if not isinstance(cost, Tensor):
        raise TypeError(f"cost: got {type(cost).__name__}, expected a tensor [B, R, C]")
    if cost.dim() != 3:
        raise ValueError(f"cost: got shape {list(cost.shape)}, expected [B, R, C]")
    if cost.dtype not in DTYPES:
        raise TypeError(f"cost: got {cost.dtype}, expected one of {', '.join(map(str, DTYPES))}; convert it")


def _check_finite(cost: Tensor) -> None:
    finite = cost.isfinite()
    if not finite.all():
        where = finite.logical_not().nonzero()[0].tolist()
        raise ValueError(
            f"cost: got {cost[tuple(where)].item()} at {where}, expected finite numbers; a pair that is not to be gets "
            "a large one"
        )


def _by_scipy(cost: Tensor) -> Tensor:
    """What the kernel computes, on a CPU."""
    from scipy.optimize import linear_sum_assignment  # on demand: matching alone needs SciPy

    B, R, _ = cost.shape
    columns = np.tile(np.arange(R), (B, 1))
    problems = cost.to(torch.float64).numpy()
    for b in np.flatnonzero(np.isfinite(problems).all((1, 2))):
        columns[b] = linear_sum_assignment(problems[b])[1]
    return torch.from_numpy(columns)


torch.library.define("slotattn_fast::match", "(Tensor cost) -> Tensor")


@torch.library.impl("slotattn_fast::match", "CompositeExplicitAutograd")
@on_its_device
def _columns(cost: Tensor) -> Tensor:
    """The column of every row, int64 [B, R], for R <= C."""
    if cost.device.type == "cpu":
        return _by_scipy(cost)
    return import_module(".kernels.matching_ops", __package__).match(cost)  # on demand: not everyone has Triton


@torch.library.register_fake("slotattn_fast::match")
def _columns_fake(cost: Tensor) -> Tensor:
    return cost.new_empty(cost.shape[:2], dtype=torch.int64)
