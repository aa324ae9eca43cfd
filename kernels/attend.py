"""Slot Attention over its N inputs: one read of the inputs an iteration, forward and backward.

Symbols and equations are those of README.md beside this file. Inputs lie along the M side of every dot and slots along
its N side, of which Hopper's tensor cores take as few as 8.

Half-precision inputs go into the dots as they are, with LayerNorm applied to the results; float32 inputs are centred in
registers first, as x . q - mu sum(q) would cancel in float32. The other operand of a dot is rounded to their type; in
float16, whose range is narrow, it is divided by its largest value first (`unit`).
"""

import triton
import triton.language as tl

from .blocks import (
    columns,
    dot,
    identity,
    normalised_products,
    pair_columns,
    round_in_units,
    round_to,
    row_statistics,
    softmax,
    softmax_backward,
    split_columns,
    unit,
)


@triton.jit
def _queries(query_ptr, i_row, m_c, m_part, D_IN: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr):
    """q' = round(q~) [BD, C], their sums over D_in [C], and c [C], of one image.

    Where C is 8, columns of 0 lie between them: Triton 3.6 uses Hopper's tensor cores for 16, but not for 8.
    """
    o_d = tl.arange(0, BLOCK_D)
    p_q = query_ptr + i_row * (D_IN + 1)
    b_q = tl.load(p_q[None, :] + o_d[:, None], mask=m_c[None, :] & (o_d[:, None] < D_IN), other=0.0)
    if b_q.shape[1] < 16:
        b_q = pair_columns(b_q, tl.zeros_like(b_q))
    b_rows = round_to(b_q, DTYPE)
    b_c = tl.where(m_part, tl.load(p_q + D_IN, mask=m_c, other=0.0), -float("inf"))
    return b_rows, tl.sum(b_rows.to(tl.float32), 0), b_c


@triton.jit
def _logits(b_x, b_rows, b_row_sums, b_c, b_mean, b_rstd, NORM: tl.constexpr):
    """l_nk = q-_k . x-_n [BN, C], from what `_queries` gave."""
    CENTRED: tl.constexpr = b_x.dtype == tl.float32
    b_zq = normalised_products(dot(b_x, b_rows), b_row_sums, b_mean, b_rstd, NORM, CENTRED)
    if b_zq.shape[1] > b_c.shape[0]:
        b_zq, _ = split_columns(b_zq)
    return b_zq + b_c[None, :]


# `blocks` must not be specialised: compiled for blocks = 1 the loop vanishes, and ptxas 12.8 (Triton 3.6) then takes an
# address in shared memory from the wrong register (`machine_code.wrong_descriptors`). The others would change no loop
# on Hopper, as rows of D_in + 1 floats are not aligned anyway, but make the compiler run anew for other batches.
@triton.jit(do_not_specialize=["blocks", "B"], do_not_specialize_on_alignment=["splits", "query_ptr", "partials_ptr"])
def attend_fwd_kernel(
    x_ptr,  # [B, N, D_in], any strides
    mask_ptr,  # [B, N] bool, or None
    slot_mask_ptr,  # [B, K] bool, or None
    query_ptr,  # q- [B, h, K, D_in + 1]
    mean_ptr,  # mu [B, N], written where FIRST
    rstd_ptr,  # r [B, N], written where FIRST
    partials_ptr,  # out: E of a split [P, B, h, K, D_in + 1]
    stride_xb,
    stride_xn,
    stride_xd,
    B,
    N,
    K,
    heads,
    blocks,  # blocks of BLOCK_N inputs a program
    splits,  # P
    offset,  # eps, or 0
    norm_eps,
    D_IN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BY_DOT: tl.constexpr,
    NORM: tl.constexpr,
    FIRST: tl.constexpr,
):
    """E_k = (y_k, S_k) = sum_n (a_nk + eps) (x^_n, 1) over the inputs of one split of one image."""
    i_b = (tl.program_id(0) // splits).to(tl.int64)
    i_p = (tl.program_id(0) % splits).to(tl.int64)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    CENTRED: tl.constexpr = DTYPE == tl.float32
    o_d = tl.arange(0, BLOCK_D)
    i_row, m_c, m_part = columns(K, heads, slot_mask_ptr, i_b, BLOCK_H, BLOCK_K)

    p_query = query_ptr + i_b * heads * K * (D_IN + 1)
    b_rows, b_row_sums, b_c = _queries(p_query, i_row, m_c, m_part, D_IN, BLOCK_D, DTYPE)
    b_offset = tl.where(m_part, tl.cast(offset, tl.float32), 0.0)

    i_first = i_p * blocks * BLOCK_N
    o_n = tl.arange(0, BLOCK_N)
    p_x = x_ptr + i_b * stride_xb + o_n[:, None].to(tl.int64) * stride_xn + o_d[None, :].to(tl.int64) * stride_xd
    b_identity = identity(BLOCK_D, DTYPE)
    b_y = tl.zeros([BLOCK_D, BLOCK_H * BLOCK_K], tl.float32)
    b_mass = tl.zeros([BLOCK_N, BLOCK_H * BLOCK_K], tl.float32)  # S_k, still to be summed over the block's rows
    b_drift = tl.zeros([BLOCK_N, BLOCK_H * BLOCK_K], tl.float32)  # sum_n w'_nk mu_n, likewise
    for i in range(blocks):
        i_n = i_first + i * BLOCK_N
        m_exists = i_n + o_n < N
        m_n = m_exists
        if mask_ptr is not None:
            m_n = m_n & (tl.load(mask_ptr + i_b * N + i_n + o_n, mask=m_n, other=0) != 0)
        m_x = m_n[:, None] & (o_d[None, :] < D_IN)
        b_x = tl.load(p_x + i_n * stride_xn, mask=m_x, other=0.0)  # [BN, BD]
        b_mean, b_rstd = tl.zeros([BLOCK_N], tl.float32), tl.where(m_n, 1.0, 0.0)  # r = 0 for what is left out
        if NORM:
            if FIRST:
                # Triton 3.6 makes a load asynchronous only if it feeds nothing but dots, so the block comes once more:
                b_tile = b_x
                if BY_DOT and DTYPE == tl.bfloat16:
                    b_tile = dot(b_x, b_identity)
                elif not CENTRED:
                    b_tile = tl.load(p_x + i_n * stride_xn, mask=m_x, other=0.0, eviction_policy="evict_last")
                b_mean, b_rstd = row_statistics(b_tile, o_d, norm_eps, D_IN)
                b_rstd = tl.where(m_n, b_rstd, 0.0)
                tl.store(mean_ptr + i_b * N + i_n + o_n, b_mean, mask=m_exists)
                tl.store(rstd_ptr + i_b * N + i_n + o_n, b_rstd, mask=m_exists)
            else:
                b_mean = tl.load(mean_ptr + i_b * N + i_n + o_n, mask=m_n, other=0.0)
                b_rstd = tl.load(rstd_ptr + i_b * N + i_n + o_n, mask=m_n, other=0.0)
            if CENTRED:
                b_x -= b_mean[:, None]

        b_l = _logits(b_x, b_rows, b_row_sums, b_c, b_mean, b_rstd, NORM)
        b_a = softmax(b_l, BLOCK_H, BLOCK_K, slot_mask_ptr is not None)
        b_w = b_a + b_offset[None, :]  # a_nk + eps
        b_mass += tl.where(m_n[:, None], b_w, 0.0)
        b_wr, b_unit = round_in_units(b_w * b_rstd[:, None], 0, DTYPE)  # w' = round((a_nk + eps) r_n)
        if NORM and not CENTRED:
            b_drift += b_wr.to(tl.float32) * b_unit * b_mean[:, None]
        b_y += dot(tl.trans(b_x), b_wr) * b_unit

    b_y -= tl.sum(b_drift, 0)[None, :]  # y_k = sum_n w'_nk x_n - sum_n w'_nk mu_n
    p_out = partials_ptr + ((i_p * B + i_b) * heads * K + i_row) * (D_IN + 1)
    tl.store(p_out[None, :] + o_d[:, None], b_y, mask=m_c[None, :] & (o_d[:, None] < D_IN))
    tl.store(p_out + D_IN, tl.sum(b_mass, 0), mask=m_c)


@triton.jit
def _operands(
    query_ptr,  # q- of an image and iteration [h, K, D_in + 1]
    d_sums_ptr,  # dE of the same
    i_row,
    m_c,
    m_part,
    D_IN: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """q' and dy' in pairs of columns [BD, 2 C], their sums over D_in [2 C], c and dS [C], the unit of dy' [1, C]."""
    o_d = tl.arange(0, BLOCK_D)
    m_rows = m_c[None, :] & (o_d[:, None] < D_IN)
    p_q, p_dy = query_ptr + i_row * (D_IN + 1), d_sums_ptr + i_row * (D_IN + 1)
    b_q = tl.load(p_q[None, :] + o_d[:, None], mask=m_rows, other=0.0)
    b_dy = tl.load(p_dy[None, :] + o_d[:, None], mask=m_rows, other=0.0)
    b_unit = unit(b_dy, 0, DTYPE)  # a slot that gets little has a large dy
    b_rows = round_to(pair_columns(b_q, b_dy * (1.0 / b_unit)), DTYPE)
    b_c = tl.where(m_part, tl.load(p_q + D_IN, mask=m_c, other=0.0), -float("inf"))
    b_ds = tl.load(p_dy + D_IN, mask=m_c, other=0.0)
    return b_rows, tl.sum(b_rows.to(tl.float32), 0), b_c, b_ds, b_unit


@triton.jit(
    do_not_specialize=["blocks", "B"],
    do_not_specialize_on_alignment=["splits", "query_ptr", "d_sums_ptr", "partials_ptr"],
)
def attend_bwd_kernel(
    x_ptr,  # [B, N, D_in], any strides
    mask_ptr,  # [B, N] bool, or None
    slot_mask_ptr,  # [B, K] bool, or None
    query_ptr,  # q- of T iterations [T, B, h, K, D_in + 1]
    d_sums_ptr,  # dE = (dy, dS) of the same [T, B, h, K, D_in + 1]
    mean_ptr,  # mu [B, N]
    rstd_ptr,  # r [B, N]
    partials_ptr,  # out: dq- = (dq~, dc) of the first of them, of a split [P, B, h, K, D_in + 1]
    d_x_ptr,  # out, dx [B, N, D_in], or None; added to what stands there if ADD
    stride_xb,
    stride_xn,
    stride_xd,
    B,
    N,
    K,
    heads,
    blocks,  # blocks of BLOCK_N inputs a program
    splits,  # P
    offset,  # eps, or 0
    D_IN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BY_DOT: tl.constexpr,
    T: tl.constexpr,
    ADD: tl.constexpr,
    NORM: tl.constexpr,
):
    """dq-_k = sum_n dl_nk (x^_n, 1) of one iteration; with d_x_ptr also dx, for which it goes through all T of them.

    Columns are doubled: 2 c is the query of column c and 2 c + 1 its dy, so that one dot gives both products of x.
    """
    i_b = (tl.program_id(0) // splits).to(tl.int64)
    i_p = (tl.program_id(0) % splits).to(tl.int64)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    CENTRED: tl.constexpr = DTYPE == tl.float32
    C: tl.constexpr = BLOCK_H * BLOCK_K
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d[:, None] < D_IN
    i_row, m_c, m_part = columns(K, heads, slot_mask_ptr, i_b, BLOCK_H, BLOCK_K)
    b_offset = tl.where(m_part, tl.cast(offset, tl.float32), 0.0)

    operands = ()
    for t in tl.static_range(T):
        i_image = (t * B + i_b) * heads * K * (D_IN + 1)
        operands = operands + (
            _operands(query_ptr + i_image, d_sums_ptr + i_image, i_row, m_c, m_part, D_IN, BLOCK_D, DTYPE),
        )

    i_first = i_p * blocks * BLOCK_N
    o_n = tl.arange(0, BLOCK_N)
    p_x = x_ptr + i_b * stride_xb + o_n[:, None].to(tl.int64) * stride_xn + o_d[None, :].to(tl.int64) * stride_xd
    if d_x_ptr is not None:
        p_dx = d_x_ptr + (i_b * N + o_n[:, None]) * D_IN + o_d[None, :]
    b_identity = identity(BLOCK_D, DTYPE)
    b_dq = tl.zeros([BLOCK_D, C], tl.float32)
    b_dc = tl.zeros([BLOCK_N, C], tl.float32)
    b_drift = tl.zeros([BLOCK_N, C], tl.float32)
    for i in range(blocks):
        i_n = i_first + i * BLOCK_N
        m_n = i_n + o_n < N
        m_dx = m_n[:, None] & (o_d[None, :] < D_IN)
        if mask_ptr is not None:
            m_n = m_n & (tl.load(mask_ptr + i_b * N + i_n + o_n, mask=m_n, other=0) != 0)
        m_x = m_n[:, None] & (o_d[None, :] < D_IN)
        b_x = tl.load(p_x + i_n * stride_xn, mask=m_x, other=0.0)  # [BN, BD]
        b_mean, b_rstd = tl.zeros([BLOCK_N], tl.float32), tl.where(m_n, 1.0, 0.0)  # r = 0 for what is left out
        if NORM:
            b_mean = tl.load(mean_ptr + i_b * N + i_n + o_n, mask=m_n, other=0.0)
            b_rstd = tl.load(rstd_ptr + i_b * N + i_n + o_n, mask=m_n, other=0.0)
            if CENTRED:
                b_x -= b_mean[:, None]

        b_g = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)  # g_n, the gradient at x^_n
        b_gx = tl.zeros([BLOCK_N, C], tl.float32)  # g_n . x^_n, still to be summed over the columns
        for t in tl.static_range(T):
            b_rows, b_row_sums, b_c, b_ds, b_dy_unit = operands[t]
            b_z = normalised_products(dot(b_x, b_rows), b_row_sums, b_mean, b_rstd, NORM, CENTRED)
            b_zq, b_zdy = split_columns(b_z)  # x^ . q~ and x^ . dy [BN, C] each
            b_zdy *= b_dy_unit
            b_a = softmax(b_zq + b_c[None, :], BLOCK_H, BLOCK_K, slot_mask_ptr is not None)
            b_dl = softmax_backward(b_a, b_zdy + b_ds[None, :], BLOCK_H, BLOCK_K)  # da_nk = dy_k . x^_n + dS_k
            if t == 0:
                b_dc += tl.where(m_n[:, None], b_dl, 0.0)
                b_dlr, b_unit = round_in_units(b_dl * b_rstd[:, None], 0, DTYPE)  # dl' = round(dl_nk r_n)
                if NORM and not CENTRED:
                    b_drift += b_dlr.to(tl.float32) * b_unit * b_mean[:, None]
                b_dq += dot(tl.trans(b_x), b_dlr) * b_unit
            if d_x_ptr is not None:
                b_w = b_a + b_offset[None, :]
                # g_n = sum over t and k of (a_nk + eps) dy_k + dl_nk q~_k
                b_pairs, b_unit = round_in_units(pair_columns(b_dl, b_w * b_dy_unit), 1, DTYPE)
                b_g += dot(b_pairs, tl.trans(b_rows)) * b_unit
                b_gx += b_dl * b_zq + b_w * b_zdy
        if d_x_ptr is not None:
            if NORM:
                # dx_n = r_n g_n - s_n (x_n - mu_n),  s_n = r_n^2 (g_n . x^_n) / D_in
                b_s = b_rstd * b_rstd * (tl.sum(b_gx, 1) / D_IN)
                if CENTRED:
                    b_g = b_rstd[:, None] * b_g - b_s[:, None] * b_x
                else:  # x_n once more, as for the statistics of the forward pass
                    if BY_DOT and DTYPE == tl.bfloat16:
                        b_tile = dot(b_x, b_identity)
                    else:
                        b_tile = tl.load(p_x + i_n * stride_xn, mask=m_x, other=0.0, eviction_policy="evict_first")
                    b_g = b_rstd[:, None] * b_g - (b_s[:, None] * b_tile.to(tl.float32) - (b_s * b_mean)[:, None])
            else:
                b_g *= b_rstd[:, None]
            p_out = p_dx + i_n * D_IN
            if ADD:
                b_g += tl.load(p_out, mask=m_dx, other=0.0).to(tl.float32)
            tl.store(p_out, round_to(b_g, DTYPE), mask=m_dx)

    p_out = partials_ptr + ((i_p * B + i_b) * heads * K + i_row) * (D_IN + 1)
    b_dq -= tl.sum(b_drift, 0)[None, :]  # dq~_k = sum_n dl'_nk x_n - sum_n dl'_nk mu_n
    tl.store(p_out[None, :] + o_d[:, None], b_dq, mask=m_c[None, :] & m_d)
    tl.store(p_out + D_IN, tl.sum(b_dc, 0), mask=m_c)


@triton.jit
def attend_map_kernel(
    x_ptr,  # [B, N, D_in], any strides
    mask_ptr,  # [B, N] bool, or None
    slot_mask_ptr,  # [B, K] bool, or None
    query_ptr,  # q- [B, h, K, D_in + 1]
    divisor_ptr,  # [B, h, K], or None
    map_ptr,  # out [B, h, K, N]
    stride_xb,
    stride_xn,
    stride_xd,
    N,
    K,
    heads,
    splits,  # programs an image
    offset,  # eps, or 0
    norm_eps,
    D_IN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
):
    """The attention of one block of inputs: a_nk, or with divisor_ptr the aggregation's weights (a_nk + eps) / S_k."""
    i_b = (tl.program_id(0) // splits).to(tl.int64)
    i_p = (tl.program_id(0) % splits).to(tl.int64)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    CENTRED: tl.constexpr = DTYPE == tl.float32
    o_d = tl.arange(0, BLOCK_D)
    o_n = i_p * BLOCK_N + tl.arange(0, BLOCK_N)
    i_row, m_c, m_part = columns(K, heads, slot_mask_ptr, i_b, BLOCK_H, BLOCK_K)
    m_n = o_n < N
    m_map = m_n[:, None] & m_c[None, :]
    if mask_ptr is not None:
        m_n = m_n & (tl.load(mask_ptr + i_b * N + o_n, mask=m_n, other=0) != 0)

    p_query = query_ptr + i_b * heads * K * (D_IN + 1)
    b_rows, b_row_sums, b_c = _queries(p_query, i_row, m_c, m_part, D_IN, BLOCK_D, DTYPE)
    p_x = x_ptr + i_b * stride_xb + o_n[:, None] * stride_xn + o_d[None, :].to(tl.int64) * stride_xd
    b_x = tl.load(p_x, mask=m_n[:, None] & (o_d[None, :] < D_IN), other=0.0)
    b_mean, b_rstd = tl.zeros([BLOCK_N], tl.float32), tl.full([BLOCK_N], 1.0, tl.float32)
    if NORM:
        b_mean, b_rstd = row_statistics(b_x, o_d, norm_eps, D_IN)
        if CENTRED:
            b_x -= b_mean[:, None]
    b_l = _logits(b_x, b_rows, b_row_sums, b_c, b_mean, b_rstd, NORM)
    b_map = softmax(b_l, BLOCK_H, BLOCK_K, slot_mask_ptr is not None)
    if divisor_ptr is not None:
        b_map += tl.where(m_part, tl.cast(offset, tl.float32), 0.0)[None, :]
        b_map /= tl.load(divisor_ptr + i_b * heads * K + i_row, mask=m_c, other=1.0)[None, :]
    b_map = tl.where(m_n[:, None], b_map, 0.0)
    p_out = map_ptr + (i_b * heads * K + i_row[None, :]) * N + o_n[:, None]
    tl.store(p_out, round_to(b_map, map_ptr.dtype.element_ty), mask=m_map)
