"""The kernels over slots, and over a whole image, as functions of tensors: outputs allocated, launches configured."""

from typing import NamedTuple

import torch
from torch import Tensor

from .absorb import absorb_bwd_kernel, absorb_fwd_kernel
from .arguments import Projections, Settings, Weights
from .device import WARP_SIZE, hopper, multiprocessors, precision
from .launch import ON_CHIP_INPUTS, UpdateConfig, fits_on_chip, options, update_config, weights_config
from .onchip import on_chip_fwd_kernel
from .update import query_fwd_kernel, update_fwd_kernel
from .update_backward import query_bwd_kernel, update_bwd_kernel
from .weights import weights_bwd_kernel


def absorb(p: Projections, heads: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Q [D, h * (D_in + 1)], Q_0 [h * (D_in + 1)] and V [h * (D_in + 1), ..], in one launch; `p.after` is there."""
    p, sizes, c = _absorb_launch(p, heads)
    D, D_in, width_v, *_ = sizes
    HE = heads * (D_in + 1)
    query, query_bias, value = (p.to_q.new_empty(shape) for shape in ((D, HE), (HE,), (HE, width_v)))
    absorb_fwd_kernel[(-(-max(D + 1, width_v) // c.block_rows), heads, 2)](
        *p, query, query_bias, value, scale, *sizes,
        c.block_rows, c.block_inputs, c.block_chunk, c.precision,
        **options(c),
    )  # fmt: skip
    return query, query_bias, value


def absorb_backward(
    d_query: Tensor, d_query_bias: Tensor, d_value: Tensor, p: Projections, heads: int, scale: float
) -> Projections:
    """The gradients to the projections, in one launch and one sum."""
    p, sizes, c = _absorb_launch(p, heads)
    _, D_in, _, _, width = sizes
    programs = -(-width // c.block_rows)
    grads = Projections._make(None if x is None else torch.empty_like(x) for x in p)
    parts = None if p.norm_input is None else p.to_q.new_empty(2 * heads * programs, 2, D_in)
    absorb_bwd_kernel[(programs, heads, 2)](
        d_query.contiguous(), d_query_bias.contiguous(), d_value.contiguous(), *p, *grads._replace(norm_input=parts),
        scale, *sizes, c.block_rows, c.block_inputs, c.block_chunk, c.precision,
        **options(c),
    )  # fmt: skip
    return grads._replace(norm_input=None if parts is None else parts.sum(0))


def first_query(slots: Tensor, w: Weights, s: Settings, query: Tensor, dtype: torch.dtype) -> None:
    """The query of the first iteration, from contiguous slots [B, K, D] of any floating type.

    Args:
        query: out [B, h, K, D_in + 1].
        dtype: of the call's inputs; here and below, bfloat16 allows products in TF32.
    """
    _check_contiguous(slots, query)
    (B, K, D), D_in = slots.shape, query.shape[-1] - 1
    c = update_config(D, D_in, warp_size=WARP_SIZE, precision=precision(dtype))
    if B * K == 0:
        return
    query_fwd_kernel[_grid(B * K, c)](
        slots, query, w.query, w.query_bias, w.norm_slots, B * K, K, s.norm_eps,
        D, D_in, s.heads, c.block_rows, c.block_slots, c.block_inputs, c.block_chunk, c.precision,
        **options(c),
    )  # fmt: skip


def update(
    partials: Tensor,
    slots: Tensor,
    slot_mask: Tensor | None,
    w: Weights,
    s: Settings,
    sums: Tensor,
    new_slots: Tensor,
    query: Tensor | None,
    dtype: torch.dtype,
) -> None:
    """An iteration's slots from its sums, and the query of the next: `slot_update.update` and `next_query`.

    Args:
        partials: the sums over the inputs in P parts [P, B, h, K, D_in + 1].
        slots: before the iteration [B, K, D], of any floating type.
        slot_mask: the slots that take part [B, K]; the others stay as they are.
        sums: out, the parts' sum E [B, h, K, D_in + 1].
        new_slots: out [B, K, D].
        query: out [B, h, K, D_in + 1]; None after the last iteration.
    """
    _check_contiguous(partials, slots, slot_mask, sums, new_slots, query)
    (B, K, D), D_in, hidden = slots.shape, sums.shape[-1] - 1, _hidden_width(w)
    P = partials.shape[0]
    c = update_config(D, D_in, hidden, P, WARP_SIZE, precision(dtype))
    if B * K == 0:
        return
    update_fwd_kernel[_grid(B * K, c)](
        partials, slots, slot_mask, sums, new_slots, query,
        w.query, w.query_bias, w.value, w.value_bias, w.norm_slots, w.recurrent, w.recurrent_bias,
        w.norm_pre_ff, w.hidden, w.hidden_bias, w.out, w.out_bias,
        B * K, K, P, _eps_in_divisor(s), s.norm_eps, s.aggregation == "mean", D, D_in, hidden, s.heads,
        c.block_rows, c.block_slots, c.block_inputs, c.block_hidden, c.block_chunk, c.unroll, c.prefetch, c.precision,
        **options(c),
    )  # fmt: skip


def forward_on_chip(
    inputs: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    slots: Tensor,
    w: Weights,
    s: Settings,
    states: Tensor,
    sums: Tensor,
    queries: Tensor,
    stats: Tensor,
) -> None:
    """All T iterations in one launch, which reads the inputs once.

    Args:
        inputs, mask, slot_mask: as in `ops.attend_forward`; bfloat16 or float16.
        slots: the initial slots [B, K, D], contiguous.
        states: out, the slots after every iteration [T, B, K, D].
        sums: out, E [T, B, 1, K, D_in + 1].
        queries: out, q- [T, B, 1, K, D_in + 1].
        stats: out, mu and r [2, B, N].

    Raises:
        ValueError: an image does not fit on the chip, or the kernel does not serve the call.
    """
    (B, N, D_in), (_, K, D), hidden = inputs.shape, slots.shape, None if w.hidden is None else _hidden_width(w)
    if not fits_on_chip(N, D_in, K, s.heads, D, hidden, inputs.element_size(), hopper(inputs.device)):
        raise ValueError(
            f"inputs {[*inputs.shape]} of {inputs.dtype} on {inputs.device}, slots {[*slots.shape]}, heads={s.heads} "
            f"and a hidden layer of {hidden}: not served by the kernel that holds an image on the chip"
        )
    _check_contiguous(slots, states, sums, queries, stats)
    c = update_config(D, D_in, _hidden_width(w), 1, WARP_SIZE, precision(inputs.dtype))
    if states.numel():
        on_chip_fwd_kernel[(B,)](
            *(inputs, mask, slot_mask, slots, states, sums, queries, *stats),
            *(w.query, w.query_bias, w.value, w.value_bias, w.norm_slots, w.recurrent, w.recurrent_bias),
            *(w.norm_pre_ff, w.hidden, w.hidden_bias, w.out, w.out_bias),
            *inputs.stride(),
            *(B, N, K, s.iters, s.offset, _eps_in_divisor(s), s.norm_eps),
            MEAN=s.aggregation == "mean",
            D=D,
            D_IN=D_in,
            H=_hidden_width(w),
            BLOCKS=-(-N // ON_CHIP_INPUTS),
            BLOCK_N=ON_CHIP_INPUTS,
            BR=c.block_rows,
            BD=c.block_slots,
            BI=c.block_inputs,
            BH=c.block_hidden,
            BC=c.block_chunk,
            NORM=s.norm_inputs,
            PRECISION=c.precision,
            **options(c),
        )


class Rows(NamedTuple):
    """What the backward kernels leave for `weight_gradients`: rows, of all T iterations, whose products are summed.

    None where a layer is left out.
    """

    slots_normed: Tensor  # [T, R, D]
    d_query: Tensor  # [T, R, h * (D_in + 1)]
    weighted_mean: Tensor  # [T, R, h * (D_in + 1)]
    d_updates: Tensor  # [T, R, 3 D], without a GRU [.., D]
    slots: Tensor | None  # [T, R, D]
    d_recurrent: Tensor | None  # [T, R, 3 D]
    new_normed: Tensor | None  # [T, R, D]
    d_hidden_rows: Tensor | None  # [T, R, H]
    hidden_rows: Tensor | None  # [T, R, H]
    d_out: Tensor | None  # [T, R, D]
    column_sums: Tensor  # [T, programs, C]: a program's sums over its rows, for biases and LayerNorms


def new_rows(iters: int, num_rows: int, D: int, D_in: int, w: Weights, s: Settings) -> Rows:
    """Room for what the backward kernels leave of `iters` iterations of B * K = `num_rows` slots."""
    query_width, hidden = s.heads * (D_in + 1), _hidden_width(w)
    programs = -(-num_rows // update_config(D, D_in).block_rows)

    def rows(width: int, wanted: Tensor | None = w.query) -> Tensor | None:
        return None if wanted is None else w.query.new_empty(iters, num_rows, width)

    return Rows._make((
        rows(D), rows(query_width), rows(query_width), rows(w.value.shape[1]),
        rows(D, w.recurrent), rows(3 * D, w.recurrent),
        rows(D, w.hidden), rows(hidden, w.hidden), rows(hidden, w.hidden), rows(D, w.hidden),
        w.query.new_empty(iters, programs, sum(_column_widths(D, w))),
    ))  # fmt: skip


def update_backward(
    query_partials: Tensor | None,
    d_new: Tensor,
    d_carry: Tensor | None,
    new_slots: Tensor,
    slots: Tensor,
    sums: Tensor,
    slot_mask: Tensor | None,
    w: Weights,
    s: Settings,
    t: int,
    d_slots: Tensor,
    d_sums: Tensor,
    rows: Rows,
    dtype: torch.dtype,
) -> None:
    """Backward through `update`: `slot_update.next_query_backward` of the new slots, and `update_backward`.

    Args:
        query_partials: the gradient to the next iteration's query in P parts [P, B, h, K, D_in + 1]; None after the
            last iteration.
        d_new: the gradient to the new slots from outside [B, K, D], with any strides.
        d_carry: that from the next iteration's update [B, K, D].
        new_slots: what `update` gave [B, K, D].
        slots: before the iteration [B, K, D].
        sums: what `update` gave [B, h, K, D_in + 1].
        t: the iteration, counted from 0.
        d_slots: out [B, K, D].
        d_sums: out [B, h, K, D_in + 1].
        rows: out; the rows of iteration t, and those of the query of iteration t + 1.
    """
    _check_contiguous(query_partials, d_carry, new_slots, slots, sums, slot_mask, d_slots, d_sums)
    (B, K, D), D_in, hidden = slots.shape, sums.shape[-1] - 1, _hidden_width(w)
    P = 1 if query_partials is None else query_partials.shape[0]
    c = update_config(D, D_in, hidden, P, WARP_SIZE, precision(dtype))
    if B * K == 0:
        return
    update_bwd_kernel[_grid(B * K, c)](
        query_partials, d_new, d_carry, new_slots, slots, sums, slot_mask, d_slots, d_sums,
        w.query, w.value, w.value_bias, w.norm_slots, w.recurrent, w.recurrent_bias,
        w.norm_pre_ff, w.hidden, w.hidden_bias, w.out, *rows,
        t, B * K, K, P, *d_new.stride(), _eps_in_divisor(s), s.norm_eps, s.aggregation == "mean",
        D, D_in, hidden, s.heads, rows.column_sums.shape[-1],
        c.block_rows, c.block_slots, c.block_inputs, c.block_hidden, c.block_chunk, c.unroll, c.prefetch, c.precision,
        **options(c),
    )  # fmt: skip


def first_query_backward(
    query_partials: Tensor,
    d_carry: Tensor | None,
    slots: Tensor,
    w: Weights,
    s: Settings,
    d_slots: Tensor,
    rows: Rows,
    dtype: torch.dtype,
) -> None:
    """Backward through `first_query`, to the initial slots.

    Args:
        query_partials: the gradient to the first query in P parts [P, B, h, K, D_in + 1].
        d_carry: the gradient to the initial slots from the first update [B, K, D].
        slots: the initial slots [B, K, D], of any floating type.
        d_slots: out [B, K, D], of any floating type.
        rows: out; the rows of the first query.
    """
    _check_contiguous(query_partials, d_carry, slots, d_slots)
    (B, K, D), D_in = slots.shape, query_partials.shape[-1] - 1
    P = query_partials.shape[0]
    c = update_config(D, D_in, 1, P, WARP_SIZE, precision(dtype))
    if B * K == 0:
        return
    query_bwd_kernel[_grid(B * K, c)](
        query_partials, slots, d_carry, d_slots, w.query, w.norm_slots,
        rows.slots_normed, rows.d_query, rows.column_sums,
        B * K, K, P, s.norm_eps, D, D_in, s.heads, rows.column_sums.shape[-1],
        c.block_rows, c.block_slots, c.block_inputs, c.block_chunk, c.unroll, c.precision,
        **options(c),
    )  # fmt: skip


def weight_gradients(rows: Rows, w: Weights, dtype: torch.dtype) -> Weights:
    """The gradients to the weights, once every iteration has left its rows: one launch, and the sum of its parts.

    They are views of one tensor.
    """
    (T, R, D), (HE, width_v), H = rows.slots_normed.shape, w.value.shape, _hidden_width(w)
    C = rows.column_sums.shape[-1]
    products = [(D, HE), (HE, width_v)]
    products += [(width_v, D)] * (w.recurrent is not None) + [(H, D), (D, H)] * (w.hidden is not None)
    c = weights_config(T * R, tuple(products), C, multiprocessors(w.query.device), WARP_SIZE, precision(dtype))
    widths = [n * m for n, m in products] + _column_widths(D, w)
    parts, S = w.query.new_empty(c.parts, sum(widths)), rows.column_sums.shape[:2].numel()
    weights_bwd_kernel[(c.blocks, c.parts)](
        *rows, parts, T * R, c.rows, S, -(-S // c.parts),
        D, HE, width_v, H, C, c.block, c.block_rows, c.precision,
        **options(c),
    )  # fmt: skip
    found = iter(parts.sum(0).split(widths))
    query, value = (next(found).view(shape) for shape in products[:2])
    recurrent = None if w.recurrent is None else next(found).view(width_v, D)
    hidden, out = (None, None) if w.hidden is None else (next(found).view(H, D), next(found).view(D, H))
    query_bias, norm_slots, value_bias, recurrent_bias, norm_pre_ff, out_bias, hidden_bias = found
    return Weights(
        query=query,
        query_bias=query_bias,
        value=value,
        value_bias=None if w.value_bias is None else value_bias,
        norm_slots=None if w.norm_slots is None else norm_slots.view(2, D),
        norm_updates=None,
        gates=None,
        gates_bias=None,
        recurrent=recurrent,
        recurrent_bias=None if w.recurrent_bias is None else recurrent_bias,
        norm_pre_ff=_norm_pre_ff_gradient(norm_pre_ff, w),
        hidden=hidden,
        hidden_bias=None if w.hidden is None else hidden_bias,
        out=out,
        out_bias=None if w.hidden is None else out_bias,
    )


def _absorb_launch(p: Projections, heads: int) -> tuple[Projections, tuple[int, int, int, int, int], UpdateConfig]:
    """The projections, contiguous; D, D_in, the width of V, h and d; the launch."""
    p = Projections._make(None if x is None else x.contiguous() for x in p)
    if p.after is None:
        raise ValueError("the kernel multiplies the values with what follows them")
    (inner, D), D_in, width_v = p.to_q.shape, p.to_k.shape[1], len(p.after)
    return p, (D, D_in, width_v, heads, inner // heads), update_config(D, D_in, warp_size=WARP_SIZE)


def _hidden_width(w: Weights) -> int:
    return 1 if w.hidden is None else w.hidden.shape[0]


def _eps_in_divisor(s: Settings) -> float:
    return s.eps if s.eps_in == "denominator" else 0.0


def _grid(num_rows: int, c: UpdateConfig) -> tuple[int]:
    return (-(-num_rows // c.block_rows),)


def _check_contiguous(*tensors: Tensor | None) -> None:
    """The kernels know no strides but those of `d_new`. Rows are contiguous, as `new_rows` makes them."""
    if not all(x is None or x.is_contiguous() for x in tensors):
        raise ValueError("the slot update's kernels take contiguous tensors")


def _column_widths(D: int, w: Weights) -> list[int]:
    """`Rows.column_sums` has query_bias, norm_slots, value_bias, recurrent_bias, norm_pre_ff, out_bias, hidden_bias."""
    width_v = w.value.shape[1]
    return [len(w.query_bias), 2 * D, width_v, width_v, 2 * D, D, _hidden_width(w)]


def _norm_pre_ff_gradient(sums: Tensor, w: Weights) -> Tensor | None:
    if w.norm_pre_ff is None:
        return None
    return torch.zeros_like(w.norm_pre_ff) if w.hidden is None else sums.view_as(w.norm_pre_ff)  # no MLP: unused
