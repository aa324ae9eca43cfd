"""The kernels over the inputs as functions of tensors: outputs allocated, launches configured."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import Settings
from .attend import attend_bwd_kernel, attend_fwd_kernel, attend_map_kernel
from .device import hopper, multiprocessors, query_bytes
from .launch import AttendConfig, attend_config, is_aligned, iterations_at_once


def attend_forward(
    inputs: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    query: Tensor,
    stats: Sequence[Tensor],
    s: Settings,
    *,
    first: bool,
) -> Tensor:
    """One iteration's pass over the inputs; returns the sums E [P, B, h, K, D_in + 1] of each of P splits of them.

    Args:
        inputs: [B, N, D_in], any strides; float32, bfloat16 or float16.
        mask: [B, N], slot_mask: [B, K]; bool, contiguous.
        query: q- [B, h, K, D_in + 1], float32.
        stats: mu and r [B, N], float32; written by the first iteration and read by the others.
        first: whether this is the first iteration.
    """
    (B, N, D_in), (_, h, K, _) = inputs.shape, query.shape
    config = _config(inputs, K, h, "first" if first else "forward")
    partials = query.new_empty(config.splits, *query.shape)
    if partials.numel():
        attend_fwd_kernel[(config.splits * B,)](
            *(inputs, mask, slot_mask, query, *stats, partials),
            *inputs.stride(),
            *(B, N, K, h, config.blocks, config.splits, s.offset, s.norm_eps),
            D_IN=D_in,
            **config.blocking(),
            BY_DOT=config.by_dot,
            NORM=s.norm_inputs,
            FIRST=first,
        )
    return partials


def attend_backward(
    inputs: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    queries: Tensor,
    d_sums: Tensor,
    stats: Sequence[Tensor],
    s: Settings,
    d_inputs: Tensor | None,
) -> Tensor:
    """The backward of the first of T iterations; returns the partial sums dq- [P, B, h, K, D_in + 1].

    Args:
        inputs, mask, slot_mask, stats: as in `attend_forward`.
        queries: q- [T, B, h, K, D_in + 1]; d_sums: dE, alike.
        d_inputs: out: the gradient to the inputs from all T iterations, contiguous [B, N, D_in]; None with T = 1 for an
            iteration that is not the first of the call.
    """
    (B, N, D_in), (T, _, h, K, _) = inputs.shape, queries.shape
    config = _config(inputs, K, h, "query" if d_inputs is None else "inputs")
    at_once = iterations_at_once(config, inputs.element_size(), query_bytes(inputs.device))
    # Of the iterations' parts of dx, which add up; of dq-, only the first is wanted.
    parts = [queries.new_empty(config.splits, *queries.shape[1:]) for _ in range(0, T, at_once)]
    for i, partials in enumerate(parts if parts[0].numel() else []):
        if len(parts) == 1:
            these, d_these = queries, d_sums
        else:
            these, d_these = (x[i * at_once : (i + 1) * at_once] for x in (queries, d_sums))
        attend_bwd_kernel[(config.splits * B,)](
            *(inputs, mask, slot_mask, these, d_these, *stats, partials, d_inputs),
            *inputs.stride(),
            *(B, N, K, h, config.blocks, config.splits, s.offset),
            D_IN=D_in,
            **config.blocking(),
            BY_DOT=config.by_dot,
            T=these.shape[0],
            ADD=i > 0,
            NORM=s.norm_inputs,
        )
    return parts[0]


def attend_map(
    inputs: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    query: Tensor,
    divisor: Tensor | None,
    s: Settings,
    dtype: torch.dtype,
) -> Tensor:
    """The attention [B, h, K, N] of one iteration, in `dtype`.

    It is the softmax over the slots, or, with the divisor [B, h, K] of the sums, the weights of the aggregation. Other
    arguments as in `attend_forward`.
    """
    (B, N, D_in), (_, h, K, _) = inputs.shape, query.shape
    config = _config(inputs, K, h, "map")
    maps = torch.empty(B, h, K, N, dtype=dtype, device=inputs.device)
    if maps.numel():
        splits = -(-N // config.block_n)
        attend_map_kernel[(splits * B,)](
            *(inputs, mask, slot_mask, query, divisor, maps),
            *inputs.stride(),
            *(N, K, h, splits, s.offset, s.norm_eps),
            D_IN=D_in,
            **config.blocking(),
            NORM=s.norm_inputs,
        )
    return maps


def _config(inputs: Tensor, K: int, heads: int, which: str) -> AttendConfig:
    B, N, D_in = inputs.shape
    device, sizes = inputs.device, (B, N, D_in, K, heads, inputs.element_size())
    aligned = is_aligned(inputs.data_ptr(), inputs.stride())
    return attend_config(*sizes, multiprocessors(device), which, hopper(device), aligned)
