"""The gradients to the weights of the iterations, from rows that the backward kernels over the slots leave.

With M rows, those (image, slot) of all T iterations, a layer  out_m = in_m W  has

    dW = sum over m of in_m^T dout_m

and the gradient to its bias, or to a LayerNorm, is a sum over m that the backward kernels have begun. A program takes
one block of one dW and one of P parts of the rows; the parts are added outside, in the order 0 .. P - 1.
"""

import triton
import triton.language as tl

from .update_steps import load, store


@triton.jit
def product_of_rows(
    left,  # [M, L]
    right,  # [M, W]
    grads,  # [L, W] out
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
    store(grads, b_out, o_l * W, o_w, m_l, m_w)


@triton.jit(do_not_specialize=["M", "rows", "S", "sums_per_part"])
def weights_bwd_kernel(
    slots_normed,  # [M, D]
    d_query,  # [M, HE], HE = h * (D_in + 1)
    weighted_mean,  # [M, HE]
    d_updates,  # [M, WIDTH_V], 3 D, without a GRU D
    slots,  # [M, D] | None
    d_recurrent,  # [M, WIDTH_V] | None
    new_normed,  # [M, D] | None
    d_hidden_rows,  # [M, H] | None
    hidden_rows,  # [M, H] | None
    d_out,  # [M, D] | None
    column_sums,  # [S, C], sums over some rows each
    grads,  # [P, .] out: a part of the gradients to Q [D, HE], V [HE, WIDTH_V], W_hh [WIDTH_V, D], W_h, W_o, and C sums
    M,
    rows,  # of a part
    S,
    sums_per_part,  # rows of `column_sums` that a part adds up
    D: tl.constexpr,
    HE: tl.constexpr,
    WIDTH_V: tl.constexpr,
    H: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    BM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (i, p): block i of the gradients, counted through all of them, over part p of the rows."""
    BLOCKS_D: tl.constexpr = (D + BLOCK - 1) // BLOCK
    BLOCKS_HE: tl.constexpr = (HE + BLOCK - 1) // BLOCK
    BLOCKS_V: tl.constexpr = (WIDTH_V + BLOCK - 1) // BLOCK
    BLOCKS_H: tl.constexpr = (H + BLOCK - 1) // BLOCK
    AT_RECURRENT: tl.constexpr = BLOCKS_D * BLOCKS_HE + BLOCKS_HE * BLOCKS_V
    AT_HIDDEN: tl.constexpr = AT_RECURRENT + (0 if slots is None else BLOCKS_V * BLOCKS_D)
    AT_COLUMNS: tl.constexpr = AT_HIDDEN + (0 if hidden_rows is None else 2 * BLOCKS_H * BLOCKS_D)
    OUT_RECURRENT: tl.constexpr = D * HE + HE * WIDTH_V
    OUT_HIDDEN: tl.constexpr = OUT_RECURRENT + (0 if slots is None else WIDTH_V * D)
    OUT_COLUMNS: tl.constexpr = OUT_HIDDEN + (0 if hidden_rows is None else 2 * H * D)
    i, i_part = tl.program_id(0), tl.program_id(1)
    first = i_part * rows
    last = tl.minimum(first + rows, M)
    p_out = grads + i_part.to(tl.int64) * (OUT_COLUMNS + C)
    if i < BLOCKS_D * BLOCKS_HE:
        product_of_rows(slots_normed, d_query, p_out, i, first, last, D, HE, BLOCK, BM, PRECISION)
    elif i < AT_RECURRENT:
        p_out += D * HE
        i -= BLOCKS_D * BLOCKS_HE
        product_of_rows(weighted_mean, d_updates, p_out, i, first, last, HE, WIDTH_V, BLOCK, BM, PRECISION)
    elif i < AT_HIDDEN:
        if slots is not None:
            p_out += OUT_RECURRENT
            i -= AT_RECURRENT
            product_of_rows(d_recurrent, slots, p_out, i, first, last, WIDTH_V, D, BLOCK, BM, PRECISION)
    elif i < AT_COLUMNS:
        if hidden_rows is not None:
            p_out += OUT_HIDDEN
            i -= AT_HIDDEN
            if i < BLOCKS_H * BLOCKS_D:
                product_of_rows(d_hidden_rows, new_normed, p_out, i, first, last, H, D, BLOCK, BM, PRECISION)
            else:
                p_out += H * D
                i -= BLOCKS_H * BLOCKS_D
                product_of_rows(d_out, hidden_rows, p_out, i, first, last, D, H, BLOCK, BM, PRECISION)
    else:
        o_c = (i - AT_COLUMNS) * BLOCK + tl.arange(0, BLOCK)
        m_c = o_c < C
        b_sum = tl.zeros([BLOCK], tl.float32)
        first = i_part * sums_per_part
        last = tl.minimum(first + sums_per_part, S)
        for j in range(first, last, BM):
            o_s = (j + tl.arange(0, BM)).to(tl.int64)
            b_sum += tl.sum(load(column_sums, o_s * C, o_c, o_s < last, m_c), 0)
        tl.store(p_out + OUT_COLUMNS + o_c, b_sum, mask=m_c)
