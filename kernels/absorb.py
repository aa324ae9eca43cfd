"""The projections that a call multiplies once, before its iterations: `slot_update.absorb` in Triton, and backward.

h heads of width d, inputs of width D_in, E = D_in + 1; g and b are weight and bias of the LayerNorm over the inputs. A
layer with weight W and bias c is extended to take x-_n = (x^_n, 1):

    W- = (W g - mean(W g), W b + c)              [d, E] a head; the mean is over D_in

With K- and V- for the layers of the keys and the values, and A [WIDTH_V, h d] for what follows the values:

    Q   = scale W_q^T K-,   Q_0 = scale b_q K-    [D, h E], [h E]
    V^T = A V-                                    [WIDTH_V, h E]

Either is  out = scale left W-,  with left = (W_q, b_q)^T, whose last row R = D is the bias, or left = A and scale = 1.
"""

import triton
import triton.language as tl

from .update_steps import load, load_vector, product, store


@triton.jit
def extended(
    weight,  # [h * d, D_in]
    bias,  # [h * d] | None
    norm,  # g and b [2, D_in] | None
    scale,
    o_k,  # [BK], rows of `weight`
    m_k,  # [BK]
    D_IN: tl.constexpr,
    BI: tl.constexpr,
):
    """scale W- of some rows: all columns but the last [BK, BI], and that [BK]."""
    o_i = tl.arange(0, BI)
    m_i = o_i < D_IN
    b_w = load(weight, o_k * D_IN, o_i, m_k, m_i)
    b_c = tl.zeros([o_k.shape[0]], tl.float32)
    if bias is not None:
        b_c += load_vector(bias, o_k, m_k)
    if norm is not None:
        b_c += tl.sum(b_w * load_vector(norm + D_IN, o_i, m_i)[None, :], 1)
        b_w *= load_vector(norm, o_i, m_i)[None, :]
        b_w = tl.where(m_i[None, :], b_w - tl.sum(b_w, 1)[:, None] / D_IN, 0.0)
    return b_w * tl.cast(scale, tl.float32), b_c * tl.cast(scale, tl.float32)


@triton.jit
def rows_forward(
    left,  # [R, h * d] by its strides
    left_bias,  # [h * d], row R of left | None
    weight,  # [h * d, D_in]
    bias,  # [h * d] | None
    norm,  # g and b [2, D_in] | None
    out,  # [R, h * E] by its strides
    out_bias,  # [h * E], row R of out | None
    scale,
    stride_left: tl.constexpr,
    stride_inner: tl.constexpr,
    stride_out: tl.constexpr,
    stride_e: tl.constexpr,
    R: tl.constexpr,
    WIDTH: tl.constexpr,
    D_IN: tl.constexpr,
    BR: tl.constexpr,
    BI: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = left W- of BR rows and one head."""
    i_h = tl.program_id(1)
    o_r, o_i = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, BI)
    o_e = i_h * (D_IN + 1) + o_i
    b_out = tl.zeros([BR, BI], tl.float32)
    b_last = tl.zeros([BR], tl.float32)
    for i in range(0, WIDTH, BC):
        m_k = i + tl.arange(0, BC) < WIDTH
        o_k = i_h * WIDTH + i + tl.arange(0, BC)
        b_w, b_c = extended(weight, bias, norm, scale, o_k, m_k, D_IN, BI)
        b_left = load(left, o_r * stride_left, o_k * stride_inner, o_r < R, m_k)
        if left_bias is not None:
            b_left += tl.where((o_r == R)[:, None], load_vector(left_bias, o_k, m_k)[None, :], 0.0)
        b_out = tl.dot(b_left, b_w, b_out, input_precision=PRECISION)
        b_last += tl.sum(b_left * b_c[None, :], 1)
    p_last = out + i_h * (D_IN + 1) * stride_e + D_IN * stride_e
    store(out, b_out, o_r * stride_out, o_e * stride_e, o_r < R, o_i < D_IN)
    tl.store(p_last + o_r * stride_out, b_last, mask=o_r < R)
    if out_bias is not None:
        store(out_bias, b_out, o_r * 0, o_e, o_r == R, o_i < D_IN)
        tl.store(out_bias + i_h * (D_IN + 1) + D_IN + o_r * 0, b_last, mask=o_r == R)


@triton.jit
def absorb_fwd_kernel(
    to_q,  # [h * d, D]
    to_q_bias,  # [h * d] | None
    to_k,  # [h * d, D_in]
    to_k_bias,  # [h * d] | None
    to_v,  # [h * d, D_in]
    to_v_bias,  # [h * d] | None
    norm,  # [2, D_in] | None
    after,  # A [WIDTH_V, h * d]
    query_weight,  # [D, h * E] out
    query_bias,  # [h * E] out
    value_weight,  # [h * E, WIDTH_V] out
    scale,
    D: tl.constexpr,
    D_IN: tl.constexpr,
    WIDTH_V: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,  # d
    BR: tl.constexpr,
    BI: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Programs (block of rows, head, 0 for the queries or 1 for the values)."""
    E: tl.constexpr = D_IN + 1
    if tl.program_id(2) == 0:
        rows_forward(
            to_q, to_q_bias, to_k, to_k_bias, norm, query_weight, query_bias, scale,
            1, D, HEADS * E, 1, D, WIDTH, D_IN, BR, BI, BC, PRECISION,
        )  # fmt: skip
    else:
        rows_forward(
            after, None, to_v, to_v_bias, norm, value_weight, None, 1.0,
            HEADS * WIDTH, 1, 1, WIDTH_V, WIDTH_V, WIDTH, D_IN, BR, BI, BC, PRECISION,
        )  # fmt: skip


@triton.jit
def rows_backward(
    left,  # as in `rows_forward`, and so on
    left_bias,
    weight,
    bias,
    norm,
    d_out,  # [R, h * E] by its strides
    d_out_bias,  # [h * E] | None
    d_left,  # out, as left
    d_left_bias,  # out, as left_bias
    d_weight,  # out [h * d, D_in]
    d_bias,  # out [h * d] | None
    p_norm,  # out [2, D_in], this program's part of the gradient to `norm` | None
    scale,
    stride_left: tl.constexpr,
    stride_inner: tl.constexpr,
    stride_out: tl.constexpr,
    stride_e: tl.constexpr,
    R: tl.constexpr,
    WIDTH: tl.constexpr,
    D_IN: tl.constexpr,
    BR: tl.constexpr,
    BI: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dleft^T = W- dout^T and dW- = left^T dout, of BR rows of W- in one head; then dW, dc, dg and db."""
    i_h = tl.program_id(1)
    o_i = tl.arange(0, BI)
    m_i = o_i < D_IN
    m_k = tl.program_id(0) * BR + tl.arange(0, BR) < WIDTH
    o_k = i_h * WIDTH + tl.program_id(0) * BR + tl.arange(0, BR)
    o_e = i_h * (D_IN + 1)
    b_w, b_c = extended(weight, bias, norm, scale, o_k, m_k, D_IN, BI)
    b_dw = tl.zeros([BR, BI], tl.float32)
    b_dc = tl.zeros([BR], tl.float32)
    for i in range(0, R, BC):
        o_r = i + tl.arange(0, BC)
        m_r = o_r < R
        b_left = load(left, o_k * stride_inner, o_r * stride_left, m_k, m_r)  # [BR, BC]
        b_dout = load(d_out + o_e * stride_e, o_r * stride_out, o_i * stride_e, m_r, m_i)
        b_dlast = load_vector(d_out + (o_e + D_IN) * stride_e, o_r * stride_out, m_r)
        b_dleft = b_c[:, None] * b_dlast[None, :]
        b_dleft = product(b_w, d_out + o_e * stride_e, stride_e, stride_out, o_r, m_r, b_dleft, D_IN, BC, PRECISION)
        store(d_left, b_dleft, o_k * stride_inner, o_r * stride_left, m_k, m_r)
        b_dw = tl.dot(b_left, b_dout, b_dw, input_precision=PRECISION)
        b_dc += tl.sum(b_left * b_dlast[None, :], 1)
    if left_bias is not None:
        b_left = load_vector(left_bias, o_k, m_k)
        b_dout = load_vector(d_out_bias + o_e, o_i, m_i)
        b_dlast = tl.load(d_out_bias + o_e + D_IN)
        tl.store(d_left_bias + o_k, tl.sum(b_w * b_dout[None, :], 1) + b_c * b_dlast, mask=m_k)
        b_dw += b_left[:, None] * b_dout[None, :]
        b_dc += b_left * b_dlast
    b_dw *= tl.cast(scale, tl.float32)
    b_dc *= tl.cast(scale, tl.float32)
    if bias is not None:
        tl.store(d_bias + o_k, b_dc, mask=m_k)
    if norm is not None:
        b_dw = tl.where(m_i[None, :], b_dw - tl.sum(b_dw, 1)[:, None] / D_IN, 0.0)  # d(W g)
        b_weight = load(weight, o_k * D_IN, o_i, m_k, m_i)
        tl.store(p_norm + o_i, tl.sum(b_dw * b_weight, 0), mask=m_i)
        tl.store(p_norm + D_IN + o_i, tl.sum(b_dc[:, None] * b_weight, 0), mask=m_i)
        b_dw *= load_vector(norm, o_i, m_i)[None, :]
        b_dw += b_dc[:, None] * load_vector(norm + D_IN, o_i, m_i)[None, :]
    store(d_weight, b_dw, o_k * D_IN, o_i, m_k, m_i)


@triton.jit
def absorb_bwd_kernel(
    d_query_weight,  # [D, h * E]
    d_query_bias,  # [h * E]
    d_value_weight,  # [h * E, WIDTH_V]
    to_q,  # [h * d, D]
    to_q_bias,  # [h * d] | None
    to_k,  # [h * d, D_in]
    to_k_bias,  # [h * d] | None
    to_v,  # [h * d, D_in]
    to_v_bias,  # [h * d] | None
    norm,  # [2, D_in] | None
    after,  # A [WIDTH_V, h * d]
    d_to_q,  # out, and the rest: the gradients, by the same names
    d_to_q_bias,
    d_to_k,
    d_to_k_bias,
    d_to_v,
    d_to_v_bias,
    d_norm,  # in parts [2 * h * programs, 2, D_in]
    d_after,
    scale,
    D: tl.constexpr,
    D_IN: tl.constexpr,
    WIDTH_V: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,  # d
    BR: tl.constexpr,
    BI: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Programs (block of rows of W-, head, 0 for the queries or 1 for the values)."""
    E: tl.constexpr = D_IN + 1
    i_part = (tl.program_id(2) * HEADS + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    p_norm = None if d_norm is None else d_norm + i_part * 2 * D_IN
    if tl.program_id(2) == 0:
        rows_backward(
            to_q, to_q_bias, to_k, to_k_bias, norm, d_query_weight, d_query_bias,
            d_to_q, d_to_q_bias, d_to_k, d_to_k_bias, p_norm, scale,
            1, D, HEADS * E, 1, D, WIDTH, D_IN, BR, BI, BC, PRECISION,
        )  # fmt: skip
    else:
        rows_backward(
            after, None, to_v, to_v_bias, norm, d_value_weight, None,
            d_after, None, d_to_v, d_to_v_bias, p_norm, 1.0,
            HEADS * WIDTH, 1, 1, WIDTH_V, WIDTH_V, WIDTH, D_IN, BR, BI, BC, PRECISION,
        )  # fmt: skip
