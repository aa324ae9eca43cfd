"""Backward through the kernels in `update`, whose head gives the forward equations and symbols.

The gradients to r, z and n are those before the sigmoid and the tanh; h_n = W_hn h + b_hn; LN' is LayerNorm's backward.

    dh'' += LN'(dq- Q^T)                                        by the next query
    dh'   = dh'' + LN'(W_h^T da),  da = W_o^T dh'' where relu > 0
    dn    = dh' (1 - z) (1 - n^2),    dz = dh' (h - n) z (1 - z)
    dr    = dn h_n r (1 - r),         dh_n = dn r
    dh    = z dh' + (dr, dz, dh_n) W_hh                         0 without a GRU; dh'' for a slot that takes no part
    dm    = (dr, dz, dn) V^T                                    dh' V^T without a GRU
    dE    = dm / divisor,             and in a weighted mean dS -= dE . m
"""

import triton
import triton.language as tl

from .update_steps import (
    divisor,
    gru_step,
    layer_norm,
    load,
    load_vector,
    next_query_backward,
    normalise_backward,
    prefetch_weights,
    product,
    products,
    relu,
    rows_of_program,
    store,
    store_column_sums,
)


@triton.jit(do_not_specialize=["R", "K", "P"])
def query_bwd_kernel(
    partials,  # [P, B, h, K, D_in + 1], of the gradient to the query
    slots,  # [B, K, D]
    d_carry,  # [B, K, D] | None
    d_slots,  # [B, K, D] out
    query_weight,  # [D, h * (D_in + 1)]
    norm_slots,  # [2, D] | None
    slots_normed,  # [T * R, D] out; rows 0 .. R - 1 are written
    d_query,  # [T * R, h * (D_in + 1)] out
    column_sums,  # [T, programs, C] out
    R,
    K,
    P,
    norm_eps,
    D: tl.constexpr,
    D_IN: tl.constexpr,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
    BI: tl.constexpr,
    BC: tl.constexpr,
    UNROLL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient to the initial slots: what the first update hands on, and that through the first query."""
    E: tl.constexpr = D_IN + 1
    o_r, o_e, m_r = rows_of_program(R, K, HEADS, E, BR)
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    b_d = next_query_backward(
        partials, load(slots, o_r * D, o_d, m_r, m_d), query_weight, norm_slots, slots_normed, d_query,
        column_sums + tl.program_id(0) * C, o_e, o_r, m_r, K, P, R.to(tl.int64) * HEADS * E, norm_eps,
        D, D_IN, HEADS, BD, BI, BC, UNROLL, PRECISION,
    )  # fmt: skip
    if d_carry is not None:
        b_d += load(d_carry, o_r * D, o_d, m_r, m_d)
    store(d_slots, b_d, o_r * D, o_d, m_r, m_d)


@triton.jit(do_not_specialize=["R", "K", "P", "t"], do_not_specialize_on_alignment=["partials", "sums", "d_sums"])
def update_bwd_kernel(
    partials,  # [P, B, h, K, D_in + 1], of the gradient to the next iteration's query; None after the last iteration
    d_new,  # [B, K, D] by its strides
    d_carry,  # [B, K, D] | None
    new_slots,  # [B, K, D]
    slots,  # [B, K, D], before the iteration
    sums,  # [B, h, K, D_in + 1]
    slot_mask,  # [B, K] | None
    d_slots,  # [B, K, D] out
    d_sums,  # [B, h, K, D_in + 1] out
    query_weight,  # [D, h * (D_in + 1)]
    value_weight,  # [h * (D_in + 1), 3 D], without a GRU [.., D]
    value_bias,  # [3 D] or [D] | None
    norm_slots,  # [2, D] | None
    recurrent_weight,  # [3 D, D] | None
    recurrent_bias,  # [3 D] | None
    norm_pre_ff,  # [2, D] | None
    hidden_weight,  # [H, D] | None
    hidden_bias,  # [H]
    out_weight,  # [D, H]
    slots_normed,  # [T * R, D] out, the rows of iteration t + 1; those below are of iteration t
    d_query,  # [T * R, h * (D_in + 1)] out, the rows of iteration t + 1
    weighted_mean,  # [T * R, h * (D_in + 1)] out
    d_updates,  # [T * R, 3 D or D] out
    slots_rows,  # [T * R, D] out | None
    d_recurrent,  # [T * R, 3 D] out | None
    new_normed,  # [T * R, D] out | None
    d_hidden_rows,  # [T * R, H] out | None
    hidden_rows,  # [T * R, H] out | None
    d_out,  # [T * R, D] out | None
    column_sums,  # [T, programs, C] out
    t,
    R,
    K,
    P,
    stride_b,  # of d_new
    stride_k,
    stride_d,
    eps,  # 0 where it is in the numerator
    norm_eps,
    MEAN: tl.constexpr,
    D: tl.constexpr,
    D_IN: tl.constexpr,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
    BI: tl.constexpr,
    BH: tl.constexpr,
    BC: tl.constexpr,
    UNROLL: tl.constexpr,
    PREFETCH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From the gradient to an iteration's new slots, directly and by the next query, to that of its slots and sums."""
    E: tl.constexpr = D_IN + 1
    # A row of the value weights: r, z, n, or the update alone.
    WIDTH_V: tl.constexpr = D if recurrent_weight is None else 3 * D
    AT_N: tl.constexpr = WIDTH_V - D  # where n begins in it
    # Where the rows' sums stand in `column_sums`, in the order of `_column_widths` in slot_ops.py.
    AT_VALUE: tl.constexpr = HEADS * E + 2 * D
    AT_RECURRENT: tl.constexpr = AT_VALUE + WIDTH_V
    AT_NORM: tl.constexpr = AT_RECURRENT + WIDTH_V
    AT_OUT: tl.constexpr = AT_NORM + 2 * D
    AT_HIDDEN: tl.constexpr = AT_OUT + D
    o_r, o_e, m_r = rows_of_program(R, K, HEADS, E, BR)
    o_tr = o_r + t.to(tl.int64) * R  # [BR]
    o_d, o_i = tl.arange(0, BD), tl.arange(0, BI)
    m_d, m_i = o_d < D, o_i < D_IN
    stride_p = R.to(tl.int64) * HEADS * E
    if PREFETCH:
        prefetch_weights(query_weight, value_weight, recurrent_weight, hidden_weight, out_weight, D, D_IN, H, HEADS)
    programs = tl.num_programs(0)
    p_sums = column_sums + (t.to(tl.int64) * programs + tl.program_id(0)) * C

    o_new = (o_r // K) * stride_b + (o_r % K) * stride_k
    b_d = load(d_new, o_new, o_d.to(tl.int64) * stride_d, m_r, m_d)  # [BR, D]
    if d_carry is not None:
        b_d += load(d_carry, o_r * D, o_d, m_r, m_d)
    if partials is not None:
        b_d += next_query_backward(
            partials, load(new_slots, o_r * D, o_d, m_r, m_d), query_weight, norm_slots, slots_normed, d_query,
            p_sums + programs * C, o_e, o_tr + R, m_r, K, P, stride_p, norm_eps,
            D, D_IN, HEADS, BD, BI, BC, UNROLL, PRECISION,
        )  # fmt: skip
    b_slots = load(slots, o_r * D, o_d, m_r, m_d)  # [BR, D]
    b_new, b_r, b_z, b_n, b_hn = gru_step(
        None, sums, weighted_mean, value_weight, value_bias, recurrent_weight, recurrent_bias, b_slots, o_e, o_tr, m_r,
        K, P, stride_p, eps, MEAN, D, D_IN, HEADS, BD, BI, BC, UNROLL, PRECISION,
    )  # fmt: skip
    b_zero = tl.zeros([BR, BD], tl.float32)
    b_dslots = b_zero
    if slot_mask is not None:
        b_kept = (tl.load(slot_mask + o_r, mask=m_r, other=0) != 0)[:, None]
        b_dslots = tl.where(b_kept, 0.0, b_d)
        b_d = tl.where(b_kept, b_d, 0.0)

    if hidden_weight is not None:
        store_column_sums(p_sums + AT_OUT, b_d, o_d, m_d)
        store(d_out, b_d, o_tr * D, o_d, m_r, m_d)
        b_x, b_hat, b_rstd = layer_norm(b_new, norm_pre_ff, m_r, o_d, m_d, norm_eps, D)
        store(new_normed, b_x, o_tr * D, o_d, m_r, m_d)
        o_h = tl.arange(0, BH)
        m_h = o_h < H
        b_hidden = tl.zeros([BR, BH], tl.float32) + load_vector(hidden_bias, o_h, m_h)[None, :]
        b_hidden = relu(product(b_x, hidden_weight, 1, D, o_h, m_h, b_hidden, D, BC, PRECISION))  # [BR, H]
        store(hidden_rows, b_hidden, o_tr * H, o_h, m_r, m_h)
        b_dh = tl.zeros([BR, BH], tl.float32)
        b_dh = product(b_d, out_weight, H, 1, o_h, m_h, b_dh, D, BC, PRECISION)
        b_dh = tl.where(b_hidden <= 0, 0.0, b_dh)
        store(d_hidden_rows, b_dh, o_tr * H, o_h, m_r, m_h)
        store_column_sums(p_sums + AT_HIDDEN, b_dh, o_h, m_h)
        b_dx = tl.zeros([BR, BD], tl.float32)
        b_dx = product(b_dh, hidden_weight, D, 1, o_d, m_d, b_dx, H, BC, PRECISION)
        if norm_pre_ff is not None:
            b_dx = normalise_backward(b_dx, b_hat, b_rstd, norm_pre_ff, p_sums + AT_NORM, o_d, m_d, D)
        b_d += b_dx

    b_dn = b_d
    if recurrent_weight is not None:
        # h' = (1 - z) n + z h,  n = tanh(i_n + r h_n),  r, z = sigmoid(i + h)
        b_dn = (b_d - b_d * b_z) * (1 - b_n * b_n)
        b_dz = b_d * (b_slots - b_n) * b_z * (1 - b_z)
        b_dr = b_dn * b_hn * b_r * (1 - b_r)
        b_dhn = b_dn * b_r
        store(slots_rows, b_slots, o_tr * D, o_d, m_r, m_d)
        store(d_updates, b_dr, o_tr * WIDTH_V, o_d, m_r, m_d)
        store(d_updates + D, b_dz, o_tr * WIDTH_V, o_d, m_r, m_d)
        store(d_recurrent, b_dr, o_tr * WIDTH_V, o_d, m_r, m_d)
        store(d_recurrent + D, b_dz, o_tr * WIDTH_V, o_d, m_r, m_d)
        store(d_recurrent + 2 * D, b_dhn, o_tr * WIDTH_V, o_d, m_r, m_d)
        store_column_sums(p_sums + AT_VALUE, b_dr, o_d, m_d)
        store_column_sums(p_sums + AT_VALUE + D, b_dz, o_d, m_d)
        store_column_sums(p_sums + AT_RECURRENT, b_dr, o_d, m_d)
        store_column_sums(p_sums + AT_RECURRENT + D, b_dz, o_d, m_d)
        store_column_sums(p_sums + AT_RECURRENT + 2 * D, b_dhn, o_d, m_d)
        b_dslots += b_d * b_z
        b_by_r, b_by_z, b_by_n = products(
            b_dr, b_dz, b_dhn, recurrent_weight, D * D, D, 1, o_d, m_d, b_dslots, b_zero, b_zero, D, BC, PRECISION,
        )  # fmt: skip
        b_dslots = b_by_r + b_by_z + b_by_n
    store(d_updates + AT_N, b_dn, o_tr * WIDTH_V, o_d, m_r, m_d)
    store_column_sums(p_sums + AT_VALUE + AT_N, b_dn, o_d, m_d)
    store(d_slots, b_dslots, o_r * D, o_d, m_r, m_d)

    for i_h in range(HEADS):
        o_head = o_e + i_h * K * E
        p_v = value_weight + i_h * E * WIDTH_V
        b_mass = load_vector(sums, o_head + D_IN, m_r)  # [BR]
        b_by = divisor(b_mass, eps, MEAN)
        b_dmass = tl.sum(b_dn * load_vector(p_v + D_IN * WIDTH_V + AT_N, o_d, m_d)[None, :], 1)
        b_dm = tl.zeros([BR, BI], tl.float32)
        if recurrent_weight is None:
            b_dm = product(b_dn, p_v, 1, WIDTH_V, o_i, m_i, b_dm, D, BC, PRECISION)
        else:
            b_dmass += tl.sum(b_dr * load_vector(p_v + D_IN * WIDTH_V, o_d, m_d)[None, :], 1)
            b_dmass += tl.sum(b_dz * load_vector(p_v + D_IN * WIDTH_V + D, o_d, m_d)[None, :], 1)
            b_dm_r, b_dm_z, b_dm_n = products(
                b_dr, b_dz, b_dn, p_v, D, 1, WIDTH_V, o_i, m_i, b_dm, b_dm, b_dm, D, BC, PRECISION,
            )  # fmt: skip
            b_dm = b_dm_r + b_dm_z + b_dm_n
        b_dm /= b_by[:, None]
        b_dmass /= b_by
        store(d_sums, b_dm, o_head, o_i, m_r, m_i)
        if MEAN:
            b_m = load(sums, o_head, o_i, m_r, m_i) / b_by[:, None]  # [BR, D_in]
            b_dmass -= tl.sum(b_dm * b_m, 1) + b_dmass * (b_mass / b_by)  # dS = .. - dE . m
        tl.store(d_sums + o_head + D_IN, b_dmass, mask=m_r)
