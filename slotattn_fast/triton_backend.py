"""Slot Attention by the Triton kernels: the order of launches, forward and backward.

The side of the slots that no kernel serves (slots wider than those of `kernels.update`) is done by the PyTorch
operators of `slot_update`. Equations and symbols are those at the head of `torch_backend`.
"""

import torch
from torch import Tensor

from .kernels.arguments import Settings, Weights
from .kernels.ops import attend_backward, attend_forward, attend_map
from .slot_update import Gradients, divisor, next_query, next_query_backward, recompute, update, update_backward


def forward_outputs(inputs: Tensor, slots: Tensor, w: Weights, s: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for what `forward` returns."""
    (B, K, D), (_, N, D_in), T, h = slots.shape, inputs.shape, s.iters, s.heads
    empty = w.query.new_empty
    return empty(T, B, K, D), empty(T, B, h, K, D_in + 1), empty(T, B, h, K, D_in + 1), empty(2, B, N)


def forward(
    inputs: Tensor, slots: Tensor, mask: Tensor | None, slot_mask: Tensor | None, w: Weights, s: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The slots [T, B, K, D], E and the queries q- [T, B, h, K, D_in + 1], and mu and r [2, B, N], all in float32."""
    states, sums, queries, stats = forward_outputs(inputs, slots, w, s)
    mask, slot_mask = _contiguous(mask), _contiguous(slot_mask)
    current = slots.to(states.dtype)
    for t in range(s.iters):
        queries[t] = next_query(current, w, s)
        partials = attend_forward(inputs, mask, slot_mask, queries[t], stats, s, first=t == 0)
        sums[t] = partials.sum(0)
        current = states[t] = update(current, sums[t], slot_mask, w, s)
    return states, sums, queries, stats


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
) -> tuple[Tensor | None, Tensor, Weights]:
    """The gradients to the inputs (None if not needed), the initial slots and the weights."""
    mask, slot_mask = _contiguous(mask), _contiguous(slot_mask)
    d_inputs = torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device) if need_d_inputs else None
    grads = Gradients(w)
    before = torch.cat([slots.to(states.dtype)[None], states])[: s.iters]
    tape = recompute(before, sums, w, s)
    d_sums = torch.empty_like(sums)
    d_current = torch.zeros_like(slots, dtype=states.dtype)
    for t in reversed(range(s.iters)):
        step = tape.at(t, slice(None))
        d_current += d_states[t]
        d_current, d_sums[t] = update_backward(d_current, slot_mask, step, w, s, grads)
        last = slice(t, None if t == 0 else t + 1)
        partials = attend_backward(
            inputs, mask, slot_mask, queries[last], d_sums[last], stats, s, d_inputs if t == 0 else None
        )
        d_current += next_query_backward(partials.sum(0), step, w, s, grads)
    if s.iters == 0 and d_inputs is not None:
        d_inputs.zero_()
    return d_inputs, d_current.to(slots.dtype), grads.total()


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
    query = next_query(slots.to(w.query.dtype), w, s).contiguous()
    by = None if sums is None else divisor(sums, s).contiguous()
    return attend_map(inputs, _contiguous(mask), _contiguous(slot_mask), query, by, s, slots.dtype)


def _contiguous(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous()
