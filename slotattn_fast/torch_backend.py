"""Slot Attention in PyTorch operators, without a key, a value or a saved attention map.

The key projection is absorbed into the query and the value projection into the result, so that the N inputs only ever
meet K small vectors (B images, N inputs, K slots, D_in and D widths, h heads, T iterations):

    x^_n  = (x_n - mu_n) r_n                                       LayerNorm without its weight and bias
    l_nk  = q~_k . x^_n + c_k,   a_nk = softmax over k of l_nk     q~_k, c_k: `slot_update.next_query`
    y_k   = sum_n (a_nk + eps) x^_n,   S_k = sum_n (a_nk + eps)    to the slots: `slot_update.update`

The backward pass recomputes a from the inputs. Given dy_k and dS_k,

    da_nk = dy_k . x^_n + dS_k,   dl_nk = a_nk (da_nk - sum_j a_nj da_nj)
    dq~_k = sum_n dl_nk x^_n,     dc_k  = sum_n dl_nk
    dx^_n = sum over t and k of (a_nk + eps) dy_k + dl_nk q~_k
    dx_n  = r_n (dx^_n - mean(dx^_n) - x^_n mean(dx^_n * x^_n))    LayerNorm, means over D_in

and dx is written once, for all iterations together. Both passes go through the batch in groups of images, so that x^
and the maps [K, N] of a group stay in the cache over all T iterations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels.arguments import Settings, Weights
from .slot_update import (
    Gradients,
    compute_dtype,
    divisor,
    next_query,
    next_query_backward,
    recompute,
    update,
    update_backward,
)

# What a group of images works on, in bytes: on a CPU it should fit in the cache, elsewhere it only bounds the memory.
GROUP_BYTES = {"cpu": 8 << 20}
GROUP_BYTES_ELSEWHERE = 256 << 20
BLOCK_ROWS = 2048


def composite(
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    w: Weights,
    s: Settings,
    softmax_over: str = "slots",
) -> Tensor:
    """The slots as `forward` gives them, by autograd: for second derivatives, torch.func and two ablations."""
    current = slots.to(w.query.dtype)
    kept = _kept(mask, slot_mask)
    normed = _normalise(inputs, mask, s)
    states = []
    for _ in range(s.iters):
        weights = _offset(_attention(normed, next_query(current, w, s), kept, softmax_over), kept, s)
        total = (weights.flatten(1, 2) @ normed).unflatten(1, weights.shape[1:3])
        current = update(current, torch.cat([total, weights.sum(-1, keepdim=True)], -1), slot_mask, w, s)
        states.append(current)
    return torch.stack(states) if states else current.new_empty((0, *slots.shape))


def attention_maps(
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    w: Weights,
    s: Settings,
    softmax_over: str,
    attn_over: str,
) -> Tensor:
    """The attention [B, h, K, N] of the iteration that starts from `slots` [B, K, D]; differentiable.

    `attn_over` "slots" gives a_nk; "inputs" the weights of the aggregation, which in a weighted mean sum to 1 over n.
    """
    kept = _kept(mask, slot_mask)
    normed = _normalise(inputs, mask, s)
    attn = _attention(normed, next_query(slots.to(normed.dtype), w, s), kept, softmax_over)
    if attn_over == "inputs":
        attn = _offset(attn, kept, s)
        attn = attn / divisor(attn.sum(-1, keepdim=True), s)
    return attn.to(slots.dtype)


def forward_outputs(inputs: Tensor, slots: Tensor, w: Weights, s: Settings) -> tuple[Tensor, Tensor]:
    """Room for what `forward` returns."""
    (B, K, D), D_in = slots.shape, inputs.shape[-1]
    return w.query.new_empty(s.iters, B, K, D), w.query.new_empty(s.iters, B, s.heads, K, D_in + 1)


def forward(
    inputs: Tensor, slots: Tensor, mask: Tensor | None, slot_mask: Tensor | None, w: Weights, s: Settings
) -> tuple[Tensor, Tensor]:
    """The slots [T, B, K, D] and E [T, B, h, K, D_in + 1] of every iteration, in the precision of the computation."""
    states, sums = forward_outputs(inputs, slots, w, s)
    K, N, D_in = slots.shape[1], *inputs.shape[1:]
    (groups, size), C = _groups(inputs, sums), _blocks(N)
    # Every group writes these anew: fresh memory for each would cost as much as the arithmetic.
    normed_ = states.new_empty(size * C, N // C, D_in)
    logits_, attn_ = states.new_empty(2, size * C, s.heads, K, N // C)
    for images in groups:
        group_mask, group_slot_mask = _at(mask, images), _at(slot_mask, images)
        kept = _kept_in_blocks(group_mask, group_slot_mask, C)
        current = slots[images].to(states.dtype)
        normed, logits, attn = (x[: len(current) * C] for x in (normed_, logits_, attn_))
        _normalise_(inputs[images], group_mask, s, out=normed.view(-1, N, D_in))
        for t in range(s.iters):
            _attention_(normed, _to_blocks(next_query(current, w, s), C), kept, logits, out=attn)
            _offset_(attn, kept, s)
            group_sums = _sums_over_inputs(attn, normed, C)
            current = update(current, group_sums, group_slot_mask, w, s)
            states[t, images], sums[t, images] = current, group_sums
    return states, sums


def backward(
    d_states: Tensor,
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    states: Tensor,
    sums: Tensor,
    w: Weights,
    s: Settings,
    need_d_inputs: bool,
) -> tuple[Tensor | None, Tensor, Weights]:
    """The gradients to the inputs (None if not needed), the initial slots and the weights."""
    T, (B, K, _), (N, D_in), h, dtype = s.iters, slots.shape, inputs.shape[1:], s.heads, states.dtype
    d_inputs = inputs.new_empty(inputs.shape) if need_d_inputs else None
    d_slots = slots.new_empty(slots.shape)
    grads = Gradients(w)
    (groups, size), C = _groups(inputs, sums), _blocks(N)
    normed_ = states.new_empty(size * C, N // C, D_in)
    d_normed_ = states.new_empty(0 if inputs.dtype == dtype else size, N, D_in)
    attn_, d_logits_ = states.new_empty(2, size * C, T * h, K, N // C)  # of all iterations and heads
    d_attn_, d_logits_now_ = states.new_empty(2, size * C, h, K, N // C)  # of one iteration
    d_totals_ = states.new_empty(size, T * h, K, D_in)
    before = torch.cat([slots.to(dtype)[None], states])[:T]
    tape = recompute(before, sums, w, s)
    queries = next_query(before.flatten(0, 1), w, s)  # [T * B, h, K, D_in + 1]
    queries = queries.unflatten(0, (T, B)).transpose(0, 1).flatten(1, 2).contiguous()
    for images in groups:
        group_mask, group_slot_mask = _at(mask, images), _at(slot_mask, images)
        kept = _kept_in_blocks(group_mask, group_slot_mask, C)
        d_current = states.new_zeros(slots[images].shape)
        buffers = (normed_, attn_, d_logits_, d_attn_, d_logits_now_)
        normed, attn, d_logits, d_attn, d_logits_now = (x[: len(d_current) * C] for x in buffers)
        d_totals = d_totals_[: len(d_current)]
        rstd = _normalise_(inputs[images], group_mask, s, out=normed.view(-1, N, D_in))
        group_queries = _to_blocks(queries[images], C)
        _attention_(normed, group_queries, kept, d_logits, out=attn)
        for t in reversed(range(T)):
            step, heads = tape.at(t, images), slice(t * h, (t + 1) * h)
            d_current += d_states[t, images]
            d_current, d_sums = update_backward(d_current, group_slot_mask, step, w, s, grads)
            _product(_to_blocks(d_sums, C), normed, out=d_attn)
            now = attn[:, heads].contiguous()
            torch._softmax_backward_data(d_attn, now, -2, dtype, grad_input=d_logits_now)
            d_query = _sums_over_inputs(d_logits_now, normed, C)
            d_current += next_query_backward(d_query, step, w, grads)
            d_logits[:, heads], d_totals[:, heads] = d_logits_now, d_sums[..., :-1]
        d_slots[images] = d_current
        if d_inputs is not None:
            _offset_(attn, kept, s)
            group_d_inputs = d_inputs[images] if d_inputs.dtype == dtype else d_normed_[: len(d_current)]
            d_normed = group_d_inputs.view(normed.shape)
            torch.bmm(attn.flatten(1, 2).mT, _to_blocks(d_totals, C).flatten(1, 2), out=d_normed)
            d_normed.baddbmm_(d_logits.flatten(1, 2).mT, group_queries[..., :-1].flatten(1, 2))
            if rstd is not None:
                _normalise_backward_(d_normed, normed, rstd)
            if d_inputs.dtype != dtype:
                d_inputs[images] = group_d_inputs
    return d_inputs, d_slots, grads.total()


def _attention(normed: Tensor, query: Tensor, kept: Tensor | None, softmax_over: str) -> Tensor:
    """a_nk [B, h, K, N] from x^ [B, N, D_in] and q- [B, h, K, D_in + 1]."""
    logits = _product(query, normed)
    dim = -2 if softmax_over == "slots" else -1
    if kept is None:
        return logits.softmax(dim)
    # The second fill is for what was masked altogether, where the softmax gives NaN.
    return logits.masked_fill(~kept, -torch.inf).softmax(dim).masked_fill(~kept, 0)


def _attention_(normed: Tensor, query: Tensor, kept: Tensor | None, logits: Tensor, out: Tensor) -> None:
    """The same into `out`, through `logits`."""
    _product(query, normed, out=logits)
    if kept is not None:
        logits.masked_fill_(~kept, -torch.inf)
    torch.softmax(logits, -2, out=out)
    if kept is not None:
        out.masked_fill_(~kept, 0)


def _offset(attn: Tensor, kept: Tensor | None, s: Settings) -> Tensor:
    """a_nk + eps, where Algorithm 1 adds it; masked inputs and slots stay at 0."""
    if not s.offset:
        return attn
    return attn + s.offset if kept is None else torch.add(attn, kept, alpha=s.offset)


def _offset_(attn: Tensor, kept: Tensor | None, s: Settings) -> None:
    """The same in place."""
    if s.offset:
        attn.add_(s.offset) if kept is None else attn.add_(kept, alpha=s.offset)


def _product(rows: Tensor, normed: Tensor, out: Tensor | None = None) -> Tensor:
    """row . (x^_n, 1) [B, h, K, N] for rows [B, h, K, D_in + 1] and x^ [B, N, D_in]."""
    flat, out = rows.flatten(1, 2), None if out is None else out.flatten(1, 2)
    product = torch.baddbmm(flat[..., -1:], flat[..., :-1], normed.mT, out=out)
    return product.unflatten(1, rows.shape[1:3])


def _sums_over_inputs(maps: Tensor, normed: Tensor, C: int) -> Tensor:
    """Sum over n of map_nk (x^_n, 1) [G, h, K, D_in + 1] for maps [G * C, h, K, N / C] and x^ [G * C, N / C, D_in]."""
    total = torch.bmm(maps.flatten(1, 2), normed).unflatten(1, maps.shape[1:3])
    sums = torch.cat([total, maps.sum(-1, keepdim=True)], -1)
    return sums if C == 1 else sums.unflatten(0, (-1, C)).sum(1)


def _to_blocks(x: Tensor, C: int) -> Tensor:
    """What belongs to an image [G, ...], for each of its C blocks [G * C, ...]."""
    return x if C == 1 else x.repeat_interleave(C, 0)


def _blocks(N: int) -> int:
    """The blocks C into which the inputs of an image are cut: operators then run over them on several cores."""
    C = 1
    while N % (2 * C) == 0 and N // (2 * C) >= BLOCK_ROWS:
        C *= 2
    return C


def _normalise(inputs: Tensor, mask: Tensor | None, s: Settings) -> Tensor:
    """x^ [B, N, D_in] in the precision of the computation."""
    x = inputs.to(compute_dtype(inputs))
    if mask is not None:
        x = x.masked_fill(~mask[..., None], 0)  # padding may hold anything, NaN too
    return F.layer_norm(x, x.shape[-1:], eps=s.norm_eps) if s.norm_inputs else x


def _normalise_(inputs: Tensor, mask: Tensor | None, s: Settings, out: Tensor) -> Tensor | None:
    """The same into `out`, for a group of images outside autograd; returns r [G, N, 1], None without LayerNorm.

    Four passes of vectorised operators in the cache take a third of the time of PyTorch's LayerNorm on a CPU. What
    rounding leaves of the mean does not matter: x^ meets centred weights alone (`absorb`).
    """
    x = inputs.to(out.dtype)
    if mask is not None:
        x = x.masked_fill(~mask[..., None], 0)
    if not s.norm_inputs:
        out.copy_(x)
        return None
    torch.sub(x, x.mean(-1, keepdim=True), out=out)
    rstd = torch.linalg.vector_norm(out, dim=-1, keepdim=True)
    rstd = rstd.square_().div_(x.shape[-1]).add_(s.norm_eps).rsqrt_()
    out.mul_(rstd)
    return rstd


def _normalise_backward_(d_normed: Tensor, normed: Tensor, rstd: Tensor) -> None:
    """dx in the place of dx^, whose mean over D_in is 0 already; a block of rows at a time, in the cache."""
    for d, x, r in zip(*(x.view(-1, x.shape[-1]).split(BLOCK_ROWS) for x in (d_normed, normed, rstd)), strict=True):
        d.addcmul_(x, (d * x).mean(-1, keepdim=True), value=-1).mul_(r)


def _groups(inputs: Tensor, sums: Tensor) -> tuple[list[slice], int]:
    """The batch in groups of images, about equally many in each, and the most in any."""
    (B, N, D_in), (T, _, h, K, _) = inputs.shape, sums.shape
    image = N * (D_in + 2 * (T + 1) * h * K) * sums.itemsize  # x^; a and dl of all iterations, da and dl of one
    most = max(1, GROUP_BYTES.get(inputs.device.type, GROUP_BYTES_ELSEWHERE) // image)
    size = -(-B // max(1, -(-B // most)))
    return [slice(start, start + size) for start in range(0, B, size or 1)], size


def _kept(mask: Tensor | None, slot_mask: Tensor | None) -> Tensor | None:
    """What takes part, broadcastable to [B, h, K, N]; None: everything."""
    if mask is not None and slot_mask is not None:
        return mask[:, None, None, :] & slot_mask[:, None, :, None]
    if mask is not None:
        return mask[:, None, None, :]
    return None if slot_mask is None else slot_mask[:, None, :, None]


def _kept_in_blocks(mask: Tensor | None, slot_mask: Tensor | None, C: int) -> Tensor | None:
    """The same for blocks, broadcastable to [G * C, h, K, N / C]."""
    blocks = None if mask is None else mask.reshape(len(mask) * C, -1)
    return _kept(blocks, None if slot_mask is None else _to_blocks(slot_mask, C))


def _at(x: Tensor | None, images: slice) -> Tensor | None:
    return None if x is None else x[images]
