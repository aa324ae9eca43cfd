"""The kernel of matching.py as a function of tensors: output allocated, launch configured."""

import torch
from torch import Tensor

from .device import WARP_SIZE
from .launch import FUSED, matching_block
from .matching import match_kernel


def match(cost: Tensor) -> Tensor:
    """The column of every row, all different in a problem, at the least sum of costs: int64 [B, R], one launch.

    A problem with a cost that is not finite gets column r for row r.

    Args:
        cost: [B, R, C], R <= C <= 64, any strides; float64, float32, bfloat16 or float16.
    """
    B, R, C = cost.shape
    columns = cost.new_empty(B, R, dtype=torch.int64)
    if columns.numel():
        block = matching_block(C, WARP_SIZE)
        match_kernel[(B,)](cost, columns, *cost.stride(), R=R, C=C, BLOCK=block, num_warps=1, **FUSED)
    return columns
