"""The small side of Slot Attention in Triton: from the sums over the inputs to the next iteration's query, and back.

B images, K slots, h heads, widths D (slots), D_in (inputs) and H (hidden layer), T iterations, P parts of the inputs
whose sums are added in the order 0 .. P - 1. A row r = b * K + k is one slot of one image, R = B * K. Tensors with
heads lie as [B, h, K, ..], so a row begins at `o_e` and its heads are K (D_in + 1) apart. The equations are

    E   = (y, S) = sum over p of the partial sums        [R, h, D_in + 1]
    m   = E / divisor                                    S, S + eps or 1; 1 where that is 0
    h'  = GRU(m V + b, h)                                m V + b alone without a GRU
    h'' = h' + W_o relu(W_h LN(h') + b_h) + b_o          h' alone without an MLP
    q-  = (q~, c) = LN(h'') Q + Q_0                      [R, h, D_in + 1], of the next iteration

A program takes 16 rows through all of it. The last column of E, m and q-, the constant that carries the biases, stands
outside the products' blocks, so that a width D_in that fills its blocks needs no further one.
"""

import triton
import triton.language as tl

from .update_steps import gru_step, load, mlp_step, next_query, prefetch_weights, rows_of_program, store


@triton.jit(do_not_specialize=["R", "K"])
def query_fwd_kernel(
    slots,  # [B, K, D]
    query,  # [B, h, K, D_in + 1] out
    query_weight,  # [D, h * (D_in + 1)]
    query_bias,  # [h * (D_in + 1)]
    norm_slots,  # [2, D] | None
    R,
    K,
    norm_eps,
    D: tl.constexpr,
    D_IN: tl.constexpr,
    HEADS: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
    BI: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The query of the first iteration."""
    o_r, o_e, m_r = rows_of_program(R, K, HEADS, D_IN + 1, BR)
    o_d = tl.arange(0, BD)
    b_slots = load(slots, o_r * D, o_d, m_r, o_d < D)  # [BR, D]
    next_query(
        b_slots, query, query_weight, query_bias, norm_slots, o_e, m_r, K, norm_eps,
        D, D_IN, HEADS, BD, BI, BC, PRECISION,
    )  # fmt: skip


# Rows of D_in + 1 floats are not aligned, whether their tensor is or not.
@triton.jit(do_not_specialize=["R", "K", "P"], do_not_specialize_on_alignment=["partials", "sums", "query"])
def update_fwd_kernel(
    partials,  # [P, B, h, K, D_in + 1]
    slots,  # [B, K, D]
    slot_mask,  # [B, K] | None
    sums,  # [B, h, K, D_in + 1] out
    new_slots,  # [B, K, D] out
    query,  # [B, h, K, D_in + 1] out | None, after the last iteration
    query_weight,  # [D, h * (D_in + 1)]
    query_bias,  # [h * (D_in + 1)]
    value_weight,  # [h * (D_in + 1), 3 D], without a GRU [.., D]
    value_bias,  # [3 D] or [D] | None
    norm_slots,  # [2, D] | None
    recurrent_weight,  # [3 D, D] | None
    recurrent_bias,  # [3 D] | None
    norm_pre_ff,  # [2, D] | None
    hidden_weight,  # [H, D] | None
    hidden_bias,  # [H]
    out_weight,  # [D, H]
    out_bias,  # [D]
    R,
    K,
    P,
    eps,  # 0 where it is in the numerator
    norm_eps,
    MEAN: tl.constexpr,
    D: tl.constexpr,
    D_IN: tl.constexpr,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
    BI: tl.constexpr,
    BH: tl.constexpr,
    BC: tl.constexpr,
    UNROLL: tl.constexpr,
    PREFETCH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """An iteration's slots from its sums, and the next iteration's query."""
    E: tl.constexpr = D_IN + 1
    o_r, o_e, m_r = rows_of_program(R, K, HEADS, E, BR)
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    stride_p = R.to(tl.int64) * HEADS * E
    if PREFETCH:
        prefetch_weights(query_weight, value_weight, recurrent_weight, hidden_weight, out_weight, D, D_IN, H, HEADS)
    b_slots = load(slots, o_r * D, o_d, m_r, m_d)  # [BR, D]
    b_new, _r, _z, _n, _hn = gru_step(
        partials, sums, None, value_weight, value_bias, recurrent_weight, recurrent_bias, b_slots, o_e, o_r, m_r,
        K, P, stride_p, eps, MEAN, D, D_IN, HEADS, BD, BI, BC, UNROLL, PRECISION,
    )  # fmt: skip
    b_new = mlp_step(
        b_new, b_slots, slot_mask, norm_pre_ff, hidden_weight, hidden_bias, out_weight, out_bias, o_r, m_r, norm_eps,
        D, H, BD, BH, BC, PRECISION,
    )  # fmt: skip
    store(new_slots, b_new, o_r * D, o_d, m_r, m_d)
    if query is not None:
        next_query(
            b_new, query, query_weight, query_bias, norm_slots, o_e, m_r, K, norm_eps,
            D, D_IN, HEADS, BD, BI, BC, PRECISION,
        )  # fmt: skip
