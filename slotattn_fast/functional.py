"""`slot_attention`: Slot Attention as a function of its inputs, its initial slots and its parameters."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import operators, slot_update, torch_backend
from .cast import transformed
from .kernels import why_not
from .kernels.arguments import Settings
from .reference.slot_attention import integer
from .validation import NOT_ITERATED, autocast_enabled, check_settings, check_tensors

BACKENDS = ("auto", "triton", "torch")


class BackendUnavailable(RuntimeError):
    """The backend that was named cannot serve a call."""


class Backend(NamedTuple):
    """Which backend a call takes ("triton" or "torch"), and why."""

    name: str
    reason: str


def slot_attention(
    inputs: Tensor,
    slots: Tensor,
    params: Mapping[str, Tensor],
    *,
    iters: int = 3,
    eps: float = 1e-8,
    heads: int = 1,
    scale: float | None = None,
    norm_eps: float = 1e-5,
    softmax_over: str = "slots",
    aggregation: str = "mean",
    eps_in: str = "numerator",
    mask: Tensor | None = None,
    slot_mask: Tensor | None = None,
    return_attn: bool | str = False,
    attn_over: str = "slots",
    return_all_slots: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Slot Attention, Algorithm 1 of Locatello et al. (2020), from given initial slots.

    B images, N inputs of width D_in, K slots of width D, T iterations, h heads.

    Args:
        inputs: [B, N, D_in]; float64, float32, bfloat16 or float16. Half types are accumulated in float32;
            the Triton kernels round what they multiply the inputs with to the inputs' type, as PyTorch's products do.
        slots: the initial slots [B, K, D].
        params: by the names of `SlotAttention`'s parameters, such as dict(module.named_parameters()). A layer whose
            parameters are absent is left out: no "gru.*", no GRU, and so on.
        iters, eps, heads, scale, norm_eps, softmax_over, aggregation, eps_in: as in `SlotAttention`.
        mask: bool [B, N], True where an input takes part. A masked input weighs nothing, gets no gradient and may hold
            anything, NaN too.
        slot_mask: bool [B, K], True where a slot takes part. A masked slot gets no attention and stays as it was;
            it must be finite.
        return_attn: True or "last": also the attention of the last iteration; "all": that of every iteration.
        attn_over: "slots": the softmax over the slots. "inputs": the weights of the aggregation, which in a weighted
            mean sum to 1 over the inputs.
        return_all_slots: the slots after every iteration instead of the last ones.
        backend: "auto", "triton" or "torch"; see `explain_backend`.

    Returns:
        slots [B, K, D], or [T, B, K, D] with return_all_slots. With return_attn a pair of them and the attention
        [B, K, N], or [B, h, K, N] if `params` combines heads; with "all", [T, ...]. The dtype is that of `slots`. All
        of it is twice differentiable.

    Raises:
        ValueError: a shape, size or setting does not fit. TypeError: a type does not. The message names the argument,
            what came and what was expected. RuntimeError: the named backend cannot serve the call; it says why.
    """
    iters, heads = integer("iters", iters), integer("heads", heads)
    check_settings(
        *(iters, eps, norm_eps, return_attn),
        softmax_over=softmax_over,
        aggregation=aggregation,
        eps_in=eps_in,
        attn_over=attn_over,
    )
    check_tensors(inputs, slots, params, heads, mask, slot_mask)
    K, D = slots.shape[1:]
    chosen = explain_backend(
        inputs, backend, num_slots=K, heads=heads, softmax_over=softmax_over, aggregation=aggregation
    )
    if scale is None:
        scale = (len(params["to_q.weight"]) // heads if "to_q.weight" in params else D) ** -0.5
    s = Settings(iters, heads, eps, norm_eps, aggregation, eps_in, "norm_input.weight" in params)

    with torch.autocast(inputs.device.type, enabled=False) if autocast_enabled(inputs) else nullcontext():
        iterated = {name: p for name, p in params.items() if name not in NOT_ITERATED}
        by_autograd = _needs_composite(softmax_over, aggregation)
        absorb = operators.absorb if chosen.name == "triton" and not by_autograd else slot_update.absorb
        w = slot_update.fold(iterated, slots, heads, scale, absorb)
        arguments = (mask, slot_mask, w, s)
        if by_autograd:
            states = torch_backend.composite(inputs, slots, *arguments, softmax_over)
        else:
            states, sums = operators.run(chosen.name, inputs, slots, *arguments)
        if return_all_slots or iters:
            result = (states if return_all_slots else states[-1]).to(slots.dtype, copy=True)
        else:
            result = slots
        if not return_attn:
            return result
        before = [slots, *states.to(slots.dtype).unbind()]
        maps = []
        for t in range(0 if return_attn == "all" else iters - 1, iters):
            if by_autograd:
                attn = torch_backend.attention_maps(inputs, before[t], *arguments, softmax_over, attn_over)
            else:
                attn = operators.attention_map(
                    chosen.name, inputs, before[t], mask, slot_mask, sums[t], w, s, attn_over
                )
            maps.append(attn)
        attn = torch.stack(maps) if maps else slots.new_empty(0, len(slots), heads, K, inputs.shape[1])
        attn = attn if return_attn == "all" else attn[0]
        return result, attn if "combine_heads.weight" in params else attn.squeeze(-3)


def explain_backend(
    inputs: Tensor,
    backend: str = "auto",
    *,
    num_slots: int = 1,
    heads: int = 1,
    softmax_over: str = "slots",
    aggregation: str = "mean",
) -> Backend:
    """Which backend a call takes, and why.

    "auto" decides from the device, dtype and width of the inputs and the other arguments alone, never by trying.

    Args:
        inputs: [B, N, D_in].
        backend, heads, softmax_over, aggregation: as in `slot_attention`.
        num_slots: K.

    Raises:
        ValueError: no such backend. TypeError: inputs is no tensor. RuntimeError: "triton" cannot serve the call; the
        message says why.
    """
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor [B, N, D_in], got {type(inputs).__name__}")
    device = inputs.device
    reason = partial(why_not, device, inputs.dtype, inputs.shape[-1], num_slots, heads, softmax_over, aggregation)
    return choose(backend, device.type, reason, "inputs")


def choose(backend: str, device_type: str, why_not_triton: Callable[[], str | None], what: str) -> Backend:
    """The backend that is asked for, or that "auto" takes for tensors, called `what`, on such a device.

    `why_not_triton` says why the kernels cannot serve, or gives None. Raises as `explain_backend` does.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend == "torch":
        return Backend("torch", "it was asked for")
    reason = why_not_triton()
    if backend == "triton":
        if reason is not None:
            raise BackendUnavailable(
                f'backend="triton" cannot serve this call: {reason}; use backend="auto" or "torch"'
            )
        return Backend("triton", "it was asked for")
    if reason is None and device_type == "cpu":
        reason = f"the {what} are on 'cpu', where Triton's interpreter serves tests and nobody else"
    return Backend("triton", "the kernels serve this call") if reason is None else Backend("torch", reason)


def _needs_composite(softmax_over: str, aggregation: str) -> bool:
    """Whether a call takes PyTorch's own operators and autograd: two ablations, torch.func, tracing, ONNX."""
    if softmax_over == "inputs" or aggregation == "sum_norm":
        return True
    return transformed() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()  # type: ignore[attr-defined]
