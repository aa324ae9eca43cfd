"""Slot Attention by the Triton kernels: the order of launches, forward and backward.

An iteration is one pass over the inputs and one launch over the slots. Slots or inputs that the kernels over the slots
do not serve, mostly because they are too wide, go through the PyTorch operators of `slot_update` instead. Equations
and symbols are those of kernels/README.md.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .kernels import slot_ops
from .kernels.arguments import Settings, Weights
from .kernels.launch import CallConfig, call_config, update_serves
from .kernels.ops import attend_backward, attend_forward, attend_map
from .slot_update import Gradients, divisor, next_query, next_query_backward, recompute, update, update_backward

Attend = Callable[[int, Tensor], Tensor]


def forward_outputs(inputs: Tensor, slots: Tensor, w: Weights, s: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for what `forward` returns."""
    (B, K, D), (_, N, D_in), T, h = slots.shape, inputs.shape, s.iters, s.heads
    empty = w.query.new_empty
    return empty(T, B, K, D), empty(T, B, h, K, D_in + 1), empty(T, B, h, K, D_in + 1), empty(2, B, N)


def forward(
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    w: Weights,
    s: Settings,
    config: CallConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The slots [T, B, K, D], E and the queries q- [T, B, h, K, D_in + 1], and mu and r [2, B, N], all in float32.

    Raises:
        ValueError: `config` wants all iterations in one launch, and that kernel does not serve the call.
    """
    outputs = forward_outputs(inputs, slots, w, s)
    slots, mask, slot_mask, w = _prepared(slots, mask, slot_mask, w)
    config = config or call_config(len(inputs))
    if config.on_chip:
        slot_ops.forward_on_chip(inputs, mask, slot_mask, slots, w, s, *outputs)
    else:
        for images in _groups(len(inputs), config):
            given = _of(images, inputs, slots, mask, slot_mask)
            _forward_group(w, s, *given, *(x.unbind() for x in _of(images, *outputs, dim=1)))
    return outputs


def _forward_group(
    w: Weights,
    s: Settings,
    inputs: Tensor,
    current: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    states: Sequence[Tensor],
    sums: Sequence[Tensor],
    queries: Sequence[Tensor],
    stats: Sequence[Tensor],
) -> None:
    """All iterations from the slots `current`; the last four are what `forward` returns, unbound."""
    fused, dtype = _fused(current, inputs, w, s), inputs.dtype
    for t in range(s.iters):
        if not fused:
            queries[t].copy_(next_query(current.to(states[t].dtype), w, s))
        elif t == 0:
            slot_ops.first_query(current, w, s, queries[0], dtype)
        partials = attend_forward(inputs, mask, slot_mask, queries[t], stats, s, first=t == 0)
        if fused:
            query = queries[t + 1] if t + 1 < s.iters else None
            slot_ops.update(partials, current, slot_mask, w, s, sums[t], states[t], query, dtype)
        else:
            torch.sum(partials, 0, out=sums[t])
            states[t].copy_(update(current.to(states[t].dtype), sums[t], slot_mask, w, s))
        current = states[t]


def backward(
    d_states: Tensor,
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    states: Tensor,
    sums: Tensor,
    queries: Tensor,
    stats: Tensor,
    w: Weights,
    s: Settings,
    need_d_inputs: bool,
    config: CallConfig | None = None,
) -> tuple[Tensor | None, Tensor, Weights]:
    """The gradients to the inputs (None if not needed), the initial slots and the weights."""
    initial, mask, slot_mask, w = _prepared(slots, mask, slot_mask, w)
    d_inputs = torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device) if need_d_inputs else None
    if s.iters == 0:
        zeros = Weights._make(None if x is None else torch.zeros_like(x) for x in w)
        return None if d_inputs is None else d_inputs.zero_(), torch.zeros_like(slots), zeros
    grads = []
    for images in _groups(len(inputs), config or call_config(len(inputs))):
        given = _of(images, inputs, initial, mask, slot_mask, d_inputs)
        kept = _of(images, d_states, states, sums, queries, stats, dim=1)
        grads.append(_backward_group(w, s, *given, *kept))
    d_slots, d_weights = grads[0]
    if len(grads) > 1:
        d_slots = torch.cat([d for d, _ in grads])
        parts = zip(*(d for _, d in grads), strict=True)
        d_weights = Weights._make(None if of_weight[0] is None else sum(of_weight) for of_weight in parts)
    return d_inputs, d_slots.to(slots.dtype), d_weights


def _backward_group(
    w: Weights,
    s: Settings,
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    d_inputs: Tensor | None,
    d_states: Tensor,
    states: Tensor,
    sums: Tensor,
    queries: Tensor,
    stats: Tensor,
) -> tuple[Tensor, Weights]:
    """The gradients to the initial slots and the weights; `d_inputs` is written to."""
    queries = queries.contiguous()  # the last pass takes those of all iterations; a group's lie apart
    mean_rstd = stats.unbind()

    def attend(t: int, d_sums: Tensor) -> Tensor:
        """dq- of iteration t, in parts; in the last pass, of the first iteration, also the gradient to the inputs."""
        if t == 0 and d_inputs is not None:
            return attend_backward(inputs, mask, slot_mask, queries, d_sums, mean_rstd, s, d_inputs)
        query, d_sum = queries[t : t + 1], d_sums[t : t + 1]
        return attend_backward(inputs, mask, slot_mask, query, d_sum, mean_rstd, s, None)

    kept = d_states, slots, slot_mask, states, sums, w, s
    if _fused(slots, inputs, w, s):
        return _backward_fused(attend, *kept, inputs.dtype)
    return _backward_by_operators(attend, *kept)


def _backward_fused(
    attend: Attend,
    d_states: Tensor,
    slots: Tensor,
    slot_mask: Tensor | None,
    states: Tensor,
    sums: Tensor,
    w: Weights,
    s: Settings,
    dtype: torch.dtype,
) -> tuple[Tensor, Weights]:
    """The gradients to the initial slots and the weights, by the kernels over the slots; `dtype` is of the inputs."""
    (T, B, K, D), D_in = states.shape, sums.shape[-1] - 1
    rows = slot_ops.new_rows(T, B * K, D, D_in, w, s)
    d_sums, d_slots = torch.empty_like(sums), torch.empty_like(states)
    of_iteration = list(zip(*(x.unbind() for x in (d_states, states, sums, d_slots, d_sums)), strict=True))
    query_partials = d_carry = None
    for t in reversed(range(T)):
        d_new, new, sums_t, d_before, d_sums_t = of_iteration[t]
        before = of_iteration[t - 1][1] if t else slots
        slot_ops.update_backward(
            *(query_partials, d_new, d_carry, new, before, sums_t),
            *(slot_mask, w, s, t, d_before, d_sums_t, rows, dtype),
        )
        query_partials, d_carry = attend(t, d_sums), d_before
    d_initial = torch.empty_like(slots)
    slot_ops.first_query_backward(query_partials, d_carry, slots, w, s, d_initial, rows, dtype)
    return d_initial, slot_ops.weight_gradients(rows, w, dtype)


def _backward_by_operators(
    attend: Attend,
    d_states: Tensor,
    slots: Tensor,
    slot_mask: Tensor | None,
    states: Tensor,
    sums: Tensor,
    w: Weights,
    s: Settings,
) -> tuple[Tensor, Weights]:
    """The same by the PyTorch operators of `slot_update`."""
    grads = Gradients(w)
    tape = recompute(torch.cat([slots.to(states.dtype)[None], states[:-1]]), sums, w, s)
    d_sums = torch.empty_like(sums)
    d_current = torch.zeros_like(slots, dtype=states.dtype)
    for t in reversed(range(s.iters)):
        step = tape.at(t, slice(None))
        d_current += d_states[t]
        d_current, d_sums[t] = update_backward(d_current, slot_mask, step, w, s, grads)
        d_current += next_query_backward(attend(t, d_sums).sum(0), step, w, grads)
    return d_current, grads.total()


def attention_map(
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    sums: Tensor | None,
    w: Weights,
    s: Settings,
) -> Tensor:
    """The attention [B, h, K, N] of the iteration that starts from `slots` [B, K, D], in their dtype.

    `sums` is E [B, h, K, D_in + 1] of that iteration, for the weights of the aggregation; None for the softmax.
    """
    current, mask, slot_mask, w = _prepared(slots, mask, slot_mask, w)
    query = next_query(current.to(w.query.dtype), w, s).contiguous()
    by = None if sums is None else divisor(sums, s).contiguous()
    return attend_map(inputs, mask, slot_mask, query, by, s, slots.dtype)


def _fused(slots: Tensor, inputs: Tensor, w: Weights, s: Settings) -> bool:
    """Whether the kernels over the slots serve the call."""
    hidden = None if w.hidden is None else len(w.hidden)
    return update_serves(slots.shape[-1], inputs.shape[-1], hidden, s.heads)


def _groups(B: int, config: CallConfig) -> list[slice | None]:
    """The images of each group; None where one group has them all."""
    if config.group >= B:
        return [None]
    return [slice(first, first + config.group) for first in range(0, B, config.group)]


def _of(images: slice | None, *tensors: Tensor | None, dim: int = 0) -> list[Any]:
    """What of each tensor belongs to these images, which it has along `dim`."""
    if images is None:
        return [*tensors]
    return [None if x is None else x[(slice(None),) * dim + (images,)] for x in tensors]


def _prepared(
    slots: Tensor, mask: Tensor | None, slot_mask: Tensor | None, w: Weights
) -> tuple[Tensor, Tensor | None, Tensor | None, Weights]:
    """All that the kernels take without strides, contiguous."""
    mask, slot_mask, *weights = (None if x is None else x.contiguous() for x in (mask, slot_mask, *w))
    return slots.contiguous(), mask, slot_mask, Weights._make(weights)
