"""The reconstruction loss of the paper's auto-encoder from its decoder's maps, in one pass forward and one backward."""

from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .cast import transformed
from .functional import BACKENDS, Backend, choose
from .kernels.device import on_its_device
from .kernels.support import why_not_mixture
from .operators import composite_is_due, gradients_of


def reconstruction_loss(maps: Tensor, images: Tensor, backend: str = "auto") -> Tensor:
    """The mean over all elements of (sum_k softmax_k(logit) * rgb_k - image)^2.

    Neither the masks nor the reconstruction are kept for the backward pass; the gradient to the maps has their type and
    order in memory.

    Args:
        maps: what the decoder draws [B, K, C + 1, H, W], C colours and then the mask's logit of K slots; any floating
            type and any strides, such as those of a channels-last map that was cropped.
        images: [B, C, H, W], in float32 or the type of the maps; any strides.
        backend: "auto", "triton" or "torch"; see `explain_mixture_backend`.

    Returns:
        A scalar in float32, or in float64 if the maps are: the arithmetic is in that type. Differentiable, and that
        twice. NaN where there is no image.

    Raises:
        ValueError: a shape does not fit. TypeError: a type does not. RuntimeError: the named backend cannot serve the
        call; it says why.

    Source: the paper, section 2.2 and Appendix E.3.
    """
    _check(maps, images)
    chosen = explain_mixture_backend(maps, backend)
    if transformed():
        return composite(maps, images)
    return getattr(torch.ops.slotattn_fast, f"{chosen.name}_mixture")(maps, images)


def explain_mixture_backend(maps: Tensor, backend: str = "auto") -> Backend:
    """Which backend `reconstruction_loss` takes for such maps, and why.

    "auto" decides from the device, dtype and shape of the maps alone, never by trying.

    Raises:
        ValueError: no such backend. RuntimeError: "triton" cannot serve the call; the message says why.
    """
    device_type = maps.device.type
    reason = partial(why_not_mixture, device_type, maps.dtype, maps.shape[1], maps.shape[2] - 1)
    return choose(backend, device_type, reason, "maps")


def composite(maps: Tensor, images: Tensor) -> Tensor:
    """The same by PyTorch's operators and their autograd."""
    return (reconstruct(maps) - images).square().mean()


def reconstruct(maps: Tensor) -> Tensor:
    """sum_k softmax_k(logit) * rgb_k [B, C, H, W], in float32 or float64, by PyTorch's operators."""
    x = maps.to(_computed_in(maps))
    return (x[:, :, -1:].softmax(1) * x[:, :, :-1]).sum(1)


def forward(maps: Tensor, images: Tensor) -> Tensor:
    """The torch backend's forward pass.

    It works on a copy in which a channel's pixels lie together: on a CPU in channels-last order, most operators take
    several times as long, and by autograd as many copies are made.
    """
    x = _planar(maps)
    masks, rgb = x[:, :, -1:].softmax(1), x[:, :, :-1]
    return rgb.mul_(masks).sum(1).sub_(images).square_().mean()


def backward(d_loss: Tensor, maps: Tensor, images: Tensor) -> Tensor:
    """The torch backend's gradient to the maps."""
    x = _planar(maps)
    masks, rgb, logits = x[:, :, -1:].softmax(1), x[:, :, :-1], x[:, :, -1:]
    y = (masks * rgb).sum(1, keepdim=True)
    d_y = (y - images[:, None]).mul_(d_loss * (2 / max(images.numel(), 1)))
    torch.sum(rgb.sub_(y).mul_(d_y), 2, keepdim=True, out=logits)  # of differences: what they share would cancel
    logits.mul_(masks)
    torch.mul(masks, d_y, out=rgb)
    # Converted first, as a copy to another order and type at once is slower than both.
    return torch.empty_like(maps).copy_(x.to(maps.dtype))


def _planar(maps: Tensor) -> Tensor:
    """A copy in the type of the computation."""
    return maps.to(_computed_in(maps), memory_format=torch.contiguous_format, copy=True)


def _computed_in(maps: Tensor) -> torch.dtype:
    return torch.float64 if maps.dtype == torch.float64 else torch.float32


def _check(maps: Tensor, images: Tensor) -> None:
    for name, x, axes in (("maps", maps, "[B, K, C + 1, H, W]"), ("images", images, "[B, C, H, W]")):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor {axes}, got {type(x).__name__}")
    if maps.dim() != 5 or maps.shape[1] < 1 or maps.shape[2] < 2:
        raise ValueError(f"maps must have shape [B, K, C + 1, H, W] with K and C at least 1, got {list(maps.shape)}")
    B, _, channels, H, W = maps.shape
    if images.shape != (B, channels - 1, H, W):
        expected = [B, channels - 1, H, W]
        raise ValueError(f"images must have shape {expected} for maps of {list(maps.shape)}, got {list(images.shape)}")
    if not maps.is_floating_point():
        raise TypeError(f"maps must be of a floating type, got {maps.dtype}")
    if images.dtype not in (torch.float32, maps.dtype):
        raise TypeError(f"images must be torch.float32 or {maps.dtype} as maps is, got {images.dtype}; convert them")
    if images.device != maps.device:
        raise ValueError(f"images must be on {maps.device} as maps is, got {images.device}")


def _kernels() -> ModuleType:
    return import_module(".kernels.mixture_ops", __package__)  # on demand: not everyone has Triton


def _register(backend: str) -> None:
    """Defines slotattn_fast::<backend>_mixture and <backend>_mixture_backward."""
    name = f"slotattn_fast::{backend}_mixture"
    torch.library.define(name, "(Tensor maps, Tensor images) -> Tensor")
    torch.library.define(f"{name}_backward", "(Tensor d_loss, Tensor maps, Tensor images) -> Tensor")

    @torch.library.impl(name, "CompositeExplicitAutograd")
    @on_its_device
    def loss(maps: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            return forward(maps, images) if backend == "torch" else _kernels().mixture_loss(maps, images)

    @torch.library.register_fake(name)
    def loss_fake(maps: Tensor, images: Tensor) -> Tensor:
        return maps.new_empty((), dtype=_computed_in(maps))

    @torch.library.impl(f"{name}_backward", "CompositeExplicitAutograd")
    @on_its_device
    def d_maps(d_loss: Tensor, maps: Tensor, images: Tensor) -> Tensor:
        by = backward if backend == "torch" else _kernels().mixture_loss_backward
        with torch.no_grad():
            return by(d_loss, maps, images)

    @torch.library.register_fake(f"{name}_backward")
    def d_maps_fake(d_loss: Tensor, maps: Tensor, images: Tensor) -> Tensor:
        return torch.empty_like(maps)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def differentiate(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        maps, images = ctx.saved_tensors
        if composite_is_due(d_loss):

            def again(maps: Tensor, images: Tensor) -> tuple[Tensor]:
                return (composite(maps, images),)

            needs, create_graph = ctx.needs_input_grad, torch.is_grad_enabled()
            return tuple(gradients_of(again, (maps, images), needs, (d_loss,), create_graph))
        grads: list[Tensor | None] = [None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = getattr(torch.ops.slotattn_fast, f"{backend}_mixture_backward")(d_loss, maps, images)
        if ctx.needs_input_grad[1]:
            d_images = (images - reconstruct(maps)) * (d_loss * 2 / max(images.numel(), 1))
            grads[1] = d_images.to(images.dtype)
        return tuple(grads)

    torch.library.register_autograd(name, differentiate, setup_context=setup_context)


for _backend in BACKENDS[1:]:
    _register(_backend)
