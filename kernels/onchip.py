"""Slot Attention forward in one launch: a program holds an image's inputs on the chip over all T iterations.

Symbols and equations are those of README.md beside this file; the sums over the inputs are those of attend.py, the
side of the slots is that of update.py. The inputs are of half precision and there is one head.

The blocks of inputs are operands of dots and nothing else once the statistics are known, and Triton leaves an operand
that does not change in a loop in shared memory: loaded and copied there once, before it.
"""

import triton
import triton.language as tl

from .blocks import columns, dot, normalised_products, round_in_units, round_to, row_statistics, softmax
from .update_steps import gru_step, load, mlp_step, next_query, store


@triton.jit(do_not_specialize=["T"])
def on_chip_fwd_kernel(
    x_ptr,  # [B, N, D_in], any strides
    mask_ptr,  # [B, N] bool, or None
    slot_mask_ptr,  # [B, K] bool, or None
    slots,  # [B, K, D]
    states,  # out, the slots after each iteration [T, B, K, D]
    sums,  # out, E [T, B, K, D_in + 1]
    queries,  # out, q- [T, B, K, D_in + 1]
    mean_ptr,  # out, mu [B, N]
    rstd_ptr,  # out, r [B, N]
    query_weight,  # [D, D_in + 1]
    query_bias,  # [D_in + 1]
    value_weight,  # [D_in + 1, 3 D], without a GRU [.., D]
    value_bias,  # [3 D] or [D] | None
    norm_slots,  # [2, D] | None
    recurrent_weight,  # [3 D, D] | None
    recurrent_bias,  # [3 D] | None
    norm_pre_ff,  # [2, D] | None
    hidden_weight,  # [H, D] | None
    hidden_bias,  # [H]
    out_weight,  # [D, H]
    out_bias,  # [D]
    stride_xb,
    stride_xn,
    stride_xd,
    B,
    N,
    K,
    T,
    offset,  # eps, or 0
    eps,  # 0 where it is in the numerator
    norm_eps,
    MEAN: tl.constexpr,
    D: tl.constexpr,
    D_IN: tl.constexpr,
    H: tl.constexpr,
    BLOCKS: tl.constexpr,  # of inputs
    BLOCK_N: tl.constexpr,
    BR: tl.constexpr,  # the slots, padded
    BD: tl.constexpr,
    BI: tl.constexpr,
    BH: tl.constexpr,
    BC: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What the other kernels give, except that a sum is not cut into splits.

    Queries and sums go from one half of an iteration to the other by memory, where the backward pass wants them anyway.
    """
    i_b = tl.program_id(0).to(tl.int64)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    E: tl.constexpr = D_IN + 1
    o_i, o_d, o_k, o_n = tl.arange(0, BI), tl.arange(0, BD), tl.arange(0, BR), tl.arange(0, BLOCK_N)
    m_i, m_d, m_k = o_i < D_IN, o_d < D, o_k < K
    _, m_c, m_part = columns(K, 1, slot_mask_ptr, i_b, 1, BR)
    b_offset = tl.where(m_part, tl.cast(offset, tl.float32), 0.0)

    p_x = x_ptr + i_b * stride_xb + o_n[:, None].to(tl.int64) * stride_xn + o_i[None, :].to(tl.int64) * stride_xd
    p_mean, p_rstd = mean_ptr + i_b * N, rstd_ptr + i_b * N
    image = ()
    for i in tl.static_range(BLOCKS):
        o_row = i * BLOCK_N + o_n
        m_exists = o_row < N
        m_n = m_exists
        if mask_ptr is not None:
            m_n = m_n & (tl.load(mask_ptr + i_b * N + o_row, mask=m_n, other=0) != 0)
        p_block = p_x + tl.cast(stride_xn, tl.int64) * (i * BLOCK_N)
        b_x = tl.load(p_block, mask=m_n[:, None] & m_i[None, :], other=0.0)  # [BN, BI]
        if NORM:
            # Sums in registers, as what a dot needs to know of a block in shared memory would stay in others.
            b_mean, b_rstd = row_statistics(b_x.to(tl.float32), o_i, norm_eps, D_IN)
            tl.store(p_mean + o_row, b_mean, mask=m_exists)
            tl.store(p_rstd + o_row, tl.where(m_n, b_rstd, 0.0), mask=m_exists)
        image = image + (b_x,)

    o_r = i_b * K + o_k
    b_slots = load(slots, o_r * D, o_d, m_k, m_d)  # [BR, D]
    # What changes in no iteration, mostly addresses, would fill the registers if it were computed ahead of the loop.
    for t in tl.range(T, disable_licm=True):
        o_tr = (tl.cast(t, tl.int64) * B + i_b) * K + o_k  # [BR]
        next_query(
            b_slots, queries, query_weight, query_bias, norm_slots, o_tr * E, m_k, K, norm_eps,
            D, D_IN, 1, BD, BI, BC, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()  # before the program's other threads load what was stored
        p_query = queries + o_tr * E
        b_q = tl.load(p_query[None, :] + o_i[:, None], mask=m_c[None, :] & m_i[:, None], other=0.0)
        b_q = round_to(b_q, DTYPE)  # q' [BI, BR]
        b_q_sums = tl.sum(b_q.to(tl.float32), 0)
        b_c = tl.where(m_part, tl.load(p_query + D_IN, mask=m_c, other=0.0), -float("inf"))
        b_y = tl.zeros([BI, BR], tl.float32)
        b_mass = tl.zeros([BLOCK_N, BR], tl.float32)
        b_drift = tl.zeros([BLOCK_N, BR], tl.float32)
        for i in tl.static_range(BLOCKS):
            o_row = i * BLOCK_N + o_n
            m_n = o_row < N
            if mask_ptr is not None:
                m_n = m_n & (tl.load(mask_ptr + i_b * N + o_row, mask=m_n, other=0) != 0)
            b_mean, b_rstd = tl.zeros([BLOCK_N], tl.float32), tl.where(m_n, 1.0, 0.0)
            if NORM:
                b_mean = tl.load(p_mean + o_row, mask=m_n, other=0.0)
                b_rstd = tl.load(p_rstd + o_row, mask=m_n, other=0.0)
            b_z = normalised_products(dot(image[i], b_q), b_q_sums, b_mean, b_rstd, NORM, False)
            b_w = softmax(b_z + b_c[None, :], 1, BR, slot_mask_ptr is not None) + b_offset[None, :]  # a_nk + eps
            b_mass += tl.where(m_n[:, None], b_w, 0.0)
            b_wr, b_unit = round_in_units(b_w * b_rstd[:, None], 0, DTYPE)  # w' = round((a_nk + eps) r_n)
            if NORM:
                b_drift += b_wr.to(tl.float32) * b_unit * b_mean[:, None]
            b_y += dot(tl.trans(image[i]), b_wr) * b_unit
        b_y -= tl.sum(b_drift, 0)[None, :]  # y_k = sum_n w'_nk x_n - sum_n w'_nk mu_n
        p_sums = sums + o_tr * E
        tl.store(p_sums[None, :] + o_i[:, None], b_y, mask=m_c[None, :] & m_i[:, None])
        tl.store(p_sums + D_IN, tl.sum(b_mass, 0), mask=m_c)
        tl.debug_barrier()
        b_new, _r, _z, _n, _hn = gru_step(
            None, sums, None, value_weight, value_bias, recurrent_weight, recurrent_bias, b_slots, o_tr * E, o_tr, m_k,
            K, 1, 0, eps, MEAN, D, D_IN, 1, BD, BI, BC, 1, PRECISION,
        )  # fmt: skip
        b_slots = mlp_step(
            b_new, b_slots, slot_mask_ptr, norm_pre_ff, hidden_weight, hidden_bias, out_weight, out_bias, o_r, m_k,
            norm_eps, D, H, BD, BH, BC, PRECISION,
        )  # fmt: skip
        store(states, b_slots, o_tr * D, o_d, m_k, m_d)
