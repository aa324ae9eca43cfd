"""The gradients to the weights of the iterations, from rows that the backward kernels over the slots leave.

With M rows, those (image, slot) of all T iterations, a layer  out_m = in_m W  has

    dW = sum over m of in_m^T dout_m

and its bias, as a LayerNorm's weight and bias, sums over m that the backward kernels have begun. A program takes one
block of one dW and one of P parts of the rows; the parts are added outside, in the order 0 .. P - 1.
"""

import triton
import triton.language as tl

from .update_steps import load, store


@triton.jit
def product_of_rows(
    left,  # [M, L]
    right,  # [M, W]
    out,  # [L, W] out
    i_block,
    first,  # row
    last,
    L: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    BM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of left^T right over the rows first .. last - 1; nothing where there is no such block."""
    BLOCKS: tl.constexpr = (W + BLOCK - 1) // BLOCK
    o_l = i_block // BLOCKS * BLOCK + tl.arange(0, BLOCK)
    o_w = i_block % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    m_l, m_w = o_l < L, o_w < W
    b_out = tl.zeros([BLOCK, BLOCK], tl.float32)
    for i in range(first, last, BM):
        o_m = (i + tl.arange(0, BM)).to(tl.int64)
        m_m = o_m < last
        b_left = load(left, o_l, o_m * L, m_l, m_m)  # [BLOCK, BM]
        b_right = load(right, o_m * W, o_w, m_m, m_w)  # [BM, BLOCK]
        b_out = tl.dot(b_left, b_right, b_out, input_precision=PRECISION)
    store(out, b_out, o_l * W, o_w, m_l, m_w)


@triton.jit(do_not_specialize=["M", "rows", "S", "sums"])
def weights_bwd_kernel(
    slots_normed,  # [M, D]
    d_query,  # [M, E], E = h * (D_in + 1)
    mean,  # [M, E]
    d_updates,  # [M, V]
    slots,  # [M, D] | None
    d_recurrent,  # [M, V] | None
    new_normed,  # [M, D] | None
    d_hidden,  # [M, H] | None
    hidden,  # [M, H] | None
    d_out,  # [M, D] | None
    columns,  # [S, C], sums over some rows each
    out,  # [P, .] out: a part of the gradients to Q [D, E], V [E, V], W_hh [V, D], the MLP [H, D], [D, H], and C sums
    M,
    rows,  # of a part
    S,
    sums,  # of `columns` in a part
    D: tl.constexpr,
    E: tl.constexpr,
    V: tl.constexpr,
    H: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    BM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Programs (block of any of them, part)."""
    BD: tl.constexpr = (D + BLOCK - 1) // BLOCK  # blocks
    BE: tl.constexpr = (E + BLOCK - 1) // BLOCK
    BV: tl.constexpr = (V + BLOCK - 1) // BLOCK
    BH: tl.constexpr = (H + BLOCK - 1) // BLOCK
    AT_RECURRENT: tl.constexpr = BD * BE + BE * BV
    AT_HIDDEN: tl.constexpr = AT_RECURRENT + (0 if slots is None else BV * BD)
    AT_COLUMNS: tl.constexpr = AT_HIDDEN + (0 if hidden is None else 2 * BH * BD)
    OUT_RECURRENT: tl.constexpr = D * E + E * V
    OUT_HIDDEN: tl.constexpr = OUT_RECURRENT + (0 if slots is None else V * D)
    OUT_COLUMNS: tl.constexpr = OUT_HIDDEN + (0 if hidden is None else 2 * H * D)
    i, i_part = tl.program_id(0), tl.program_id(1)
    first = i_part * rows
    last = tl.minimum(first + rows, M)
    p_out = out + i_part.to(tl.int64) * (OUT_COLUMNS + C)
    if i < BD * BE:
        product_of_rows(slots_normed, d_query, p_out, i, first, last, D, E, BLOCK, BM, PRECISION)
    elif i < AT_RECURRENT:
        product_of_rows(mean, d_updates, p_out + D * E, i - BD * BE, first, last, E, V, BLOCK, BM, PRECISION)
    elif i < AT_HIDDEN:
        if slots is not None:
            p_out += OUT_RECURRENT
            product_of_rows(d_recurrent, slots, p_out, i - AT_RECURRENT, first, last, V, D, BLOCK, BM, PRECISION)
    elif i < AT_COLUMNS:
        if hidden is not None:
            p_out += OUT_HIDDEN
            if i < AT_HIDDEN + BH * BD:
                product_of_rows(d_hidden, new_normed, p_out, i - AT_HIDDEN, first, last, H, D, BLOCK, BM, PRECISION)
            else:
                p_out += H * D
                i_block = i - AT_HIDDEN - BH * BD
                product_of_rows(d_out, hidden, p_out, i_block, first, last, D, H, BLOCK, BM, PRECISION)
    else:
        o_c = (i - AT_COLUMNS) * BLOCK + tl.arange(0, BLOCK)
        m_c = o_c < C
        b_sum = tl.zeros([BLOCK], tl.float32)
        first = i_part * sums
        last = tl.minimum(first + sums, S)
        for j in range(first, last, BM):
            o_s = (j + tl.arange(0, BM)).to(tl.int64)
            b_sum += tl.sum(load(columns, o_s * C, o_c, o_s < last, m_c), 0)
        tl.store(p_out + OUT_COLUMNS + o_c, b_sum, mask=m_c)
