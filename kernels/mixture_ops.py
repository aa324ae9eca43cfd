"""The kernels of mixture.py as functions of tensors: outputs allocated, launches configured."""

from typing import Any

import torch
from torch import Tensor

from .device import WARP_SIZE
from .launch import FUSED, mixture_config
from .mixture import mixture_loss_bwd_kernel, mixture_loss_fwd_kernel


def mixture_loss(maps: Tensor, images: Tensor) -> Tensor:
    """The mean squared error of the reconstruction, a float32 scalar: one launch, and the sum of its programs' parts.

    Args:
        maps: [B, K, C + 1, H, W], any strides; float32, bfloat16 or float16.
        images: [B, C, H, W], any strides and floating type.
    """
    if not images.numel():
        return maps.new_full((), torch.nan, dtype=torch.float32)
    sizes, options = _launch(maps, images, maps)
    programs = len(images) * sizes["tiles"]
    partials = maps.new_empty(programs, dtype=torch.float32)
    mixture_loss_fwd_kernel[(programs,)](
        maps, images, partials, *_strides(maps), *images.stride(), scale=1 / images.numel(), **sizes, **options
    )
    return partials.sum()


def mixture_loss_backward(d_loss: Tensor, maps: Tensor, images: Tensor) -> Tensor:
    """The gradient to the maps, in their type and order in memory; `d_loss` is a float32 scalar."""
    d_maps = torch.empty_like(maps)
    if d_maps.numel():
        sizes, options = _launch(maps, images, d_maps)
        mixture_loss_bwd_kernel[(len(images) * sizes["tiles"],)](
            *(d_loss, maps, images, d_maps),
            *(*_strides(maps), *images.stride(), *_strides(d_maps)),
            scale=2 / images.numel(),
            TOGETHER_D=_together(d_maps),
            **sizes,
            **options,
        )
    return d_maps


def _launch(maps: Tensor, images: Tensor, d_maps: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both kernels take besides tensors and strides; and the options of their launch."""
    K, (_, C, H, W) = maps.shape[1], images.shape
    config = mixture_config(K, C, WARP_SIZE)
    flat = all(H == 1 or x.stride(-2) == W * x.stride(-1) for x in (maps, images, d_maps))
    sizes = {"K": K, "N": H * W, "W": W, "tiles": -(-H * W // config.block_n), "C": C, "FLAT": flat}
    sizes |= {"TOGETHER": _together(maps), "BN": config.block_n, "BK": config.block_k}
    return sizes, {"num_warps": config.num_warps, **FUSED}


def _together(maps: Tensor) -> int:
    """How many channels of a pixel are moved at once: all, where they lie together in pieces of that size."""
    channels, strides = maps.shape[2], maps.stride()
    in_pieces = all(stride % channels == 0 for i, stride in enumerate(strides) if i != 2)
    return channels if channels in (2, 4) and strides[2] == 1 and in_pieces else 1


def _strides(maps: Tensor) -> tuple[int, ...]:
    """As the kernels take them: all but that of the channels in units of what is moved at once."""
    together = _together(maps)
    return tuple(stride if i == 2 else stride // together for i, stride in enumerate(maps.stride()))
