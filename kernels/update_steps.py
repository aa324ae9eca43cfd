"""Steps of the kernels in `update`, inlined into them. The head of that file gives the equations and symbols."""

import triton
import triton.language as tl

from .blocks import INTERPRETED


@triton.jit
def rows_of_program(R, K, HEADS: tl.constexpr, E: tl.constexpr, BR: tl.constexpr):
    """A program's rows r [BR], where each begins in [B, h, K, E] for the first head, and which of them there are."""
    o_r = tl.program_id(0) * BR + tl.arange(0, BR)
    m_r = o_r < R
    o_e = ((o_r // K).to(tl.int64) * HEADS * K + o_r % K) * E
    return o_r.to(tl.int64), o_e, m_r


@triton.jit
def load(p, o_row, o_col, m_row, m_col):
    """A block [rows, columns] in fp32, 0 outside of the masks; the offsets carry the strides."""
    m = m_row[:, None] & m_col[None, :]
    return tl.load(p + (o_row[:, None] + o_col[None, :]), mask=m, other=0.0).to(tl.float32)


@triton.jit
def store(p, b_x, o_row, o_col, m_row, m_col):
    tl.store(p + (o_row[:, None] + o_col[None, :]), b_x, mask=m_row[:, None] & m_col[None, :])


@triton.jit
def load_vector(p, o, m):
    return tl.load(p + o, mask=m, other=0.0).to(tl.float32)


@triton.jit
def store_column_sums(p, b_x, o_col, m_col):
    """The sums over a program's rows; those beyond R are 0."""
    tl.store(p + o_col, tl.sum(b_x, 0), mask=m_col)


@triton.jit
def prefetch_to_l2(p, SIZE: tl.constexpr):
    """Prefetches SIZE floats, which all programs read later, into the L2 cache: a part each, without waiting."""
    for i in range(tl.program_id(0) * 256, (SIZE + 7) // 8, tl.num_programs(0) * 256):
        o = tl.minimum((i + tl.arange(0, 256)) * 8, SIZE - 1)  # the cache's sectors have 8
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [p + o], tl.int32, is_pure=False, pack=1
        )


@triton.jit
def prefetch_weights(
    query_weight,
    value_weight,
    recurrent_weight,
    hidden_weight,
    out_weight,
    D: tl.constexpr,
    D_IN: tl.constexpr,
    H: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Prefetches all weights, which the passes over the inputs have evicted from the L2 cache."""
    HE: tl.constexpr = HEADS * (D_IN + 1)
    if not INTERPRETED:
        prefetch_to_l2(value_weight, HE * (D if recurrent_weight is None else 3 * D))
        if recurrent_weight is not None:
            prefetch_to_l2(recurrent_weight, 3 * D * D)
        if hidden_weight is not None:
            prefetch_to_l2(hidden_weight, H * D)
            prefetch_to_l2(out_weight, D * H)
        prefetch_to_l2(query_weight, D * HE)


@triton.jit
def sum_parts(p_part, m, stride, P, UNROLL: tl.constexpr):
    """Sum of what stands at `p_part + p * stride`, in the order 0 .. P - 1; UNROLL loads are under way at once."""
    b_sum = tl.zeros(p_part.shape, tl.float32)
    for i in range(0, P, UNROLL):
        for j in tl.static_range(UNROLL):
            b_sum += tl.load(p_part + (i + j) * stride, mask=m & (tl.full(m.shape, i + j, tl.int32) < P), other=0.0)
    return b_sum


@triton.jit
def columns_from(b_x, i, WIDTH: tl.constexpr):
    """Columns i .. i + WIDTH - 1 of x, out of registers by a gather; x itself where it has no others."""
    if b_x.shape[1] == WIDTH:
        b_part = b_x
    else:
        o_k = i + tl.arange(0, WIDTH)
        b_part = tl.gather(b_x, tl.broadcast_to(o_k[None, :], [b_x.shape[0], WIDTH]), 1)
    return b_part


@triton.jit
def product(
    b_x,  # [rows, padded WIDTH]
    weight,  # [WIDTH, N] by its strides
    stride_k: tl.constexpr,
    stride_n: tl.constexpr,
    o_n,  # [BN]
    m_n,  # [BN]
    b_acc,  # [rows, BN]
    WIDTH: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """b_acc + x W [rows, BN], summed over BC of WIDTH at a time.

    Without tensor cores a thread holds a dot's operands over all of its sum: BC bounds the registers.
    """
    CHUNK: tl.constexpr = min(BC, b_x.shape[1])
    for i in range(0, WIDTH, CHUNK):
        o_k = i + tl.arange(0, CHUNK)
        b_w = load(weight, o_k * stride_k, o_n * stride_n, o_k < WIDTH, m_n)  # [CHUNK, BN]
        b_acc = tl.dot(columns_from(b_x, i, CHUNK), b_w, b_acc, input_precision=PRECISION)
    return b_acc


@triton.jit
def products(
    b_x,  # three factors [rows, padded WIDTH]
    b_y,
    b_z,
    weight,  # of x; those of y and z begin `step` and 2 `step` behind it
    step: tl.constexpr,
    stride_k: tl.constexpr,
    stride_n: tl.constexpr,
    o_n,
    m_n,
    b_acc_x,  # [rows, BN]
    b_acc_y,
    b_acc_z,
    WIDTH: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`product` of the GRU's three gates, whose weights are under way at once: memory is what a program waits for."""
    CHUNK: tl.constexpr = min(BC, b_x.shape[1])
    for i in range(0, WIDTH, CHUNK):
        o_k = i + tl.arange(0, CHUNK)
        m_k = o_k < WIDTH
        b_wx = load(weight, o_k * stride_k, o_n * stride_n, m_k, m_n)  # [CHUNK, BN]
        b_wy = load(weight + step, o_k * stride_k, o_n * stride_n, m_k, m_n)
        b_wz = load(weight + 2 * step, o_k * stride_k, o_n * stride_n, m_k, m_n)
        b_acc_x = tl.dot(columns_from(b_x, i, CHUNK), b_wx, b_acc_x, input_precision=PRECISION)
        b_acc_y = tl.dot(columns_from(b_y, i, CHUNK), b_wy, b_acc_y, input_precision=PRECISION)
        b_acc_z = tl.dot(columns_from(b_z, i, CHUNK), b_wz, b_acc_z, input_precision=PRECISION)
    return b_acc_x, b_acc_y, b_acc_z


@triton.jit
def normalise(b_x, m_r, m_d, eps, D: tl.constexpr):
    """x^ [BR, D] and 1 / standard deviation [BR, 1]; finite in rows beyond R, which are 0, with eps = 0 too."""
    b_centred = tl.where(m_d[None, :], b_x - tl.sum(b_x, 1)[:, None] / D, 0.0)
    b_eps = tl.where(m_r, tl.cast(eps, tl.float32), 1.0)
    b_rstd = tl.rsqrt(tl.sum(b_centred * b_centred, 1)[:, None] / D + b_eps[:, None])
    return b_centred * b_rstd, b_rstd


@triton.jit
def layer_norm(b_x, affine, m_r, o_d, m_d, eps, D: tl.constexpr):
    """LN(x) [BR, D], and for its backward x^ and 1 / standard deviation; x in place of all where `affine` is None."""
    b_out, b_hat, b_rstd = b_x, b_x, b_x
    if affine is not None:
        b_hat, b_rstd = normalise(b_x, m_r, m_d, eps, D)
        b_out = b_hat * load_vector(affine, o_d, m_d)[None, :] + load_vector(affine + D, o_d, m_d)[None, :]
    return b_out, b_hat, b_rstd


@triton.jit
def normalise_backward(b_d, b_hat, b_rstd, affine, p_sums, o_d, m_d, D: tl.constexpr):
    """dx [BR, D]; the sums over the rows of the gradients to weight and bias go to `p_sums` [2, D]."""
    store_column_sums(p_sums, b_d * b_hat, o_d, m_d)
    store_column_sums(p_sums + D, b_d, o_d, m_d)
    b_d *= load_vector(affine, o_d, m_d)[None, :]
    # dx = r (dx^ - mean(dx^) - x^ mean(dx^ * x^))
    b_d -= tl.sum(b_d, 1)[:, None] / D + b_hat * (tl.sum(b_d * b_hat, 1)[:, None] / D)
    return tl.where(m_d[None, :], b_d * b_rstd, 0.0)


@triton.jit
def divisor(b_mass, eps, MEAN: tl.constexpr):
    """What E is divided by [BR]; `eps` is 0 where it is in the numerator."""
    if MEAN:
        b_by = b_mass + tl.cast(eps, tl.float32)
        b_by = tl.where(b_by == 0, 1.0, b_by)  # a slot to which nothing at all was given: a mean of 0, not NaN
    else:
        b_by = tl.full(b_mass.shape, 1.0, tl.float32)
    return b_by


@triton.jit
def tanh(b_x):
    return 1 - 2 / (tl.exp(2 * b_x) + 1)


@triton.jit
def relu(b_x):
    return tl.where(b_x <= 0, 0.0, b_x)  # NaN stays NaN


@triton.jit
def next_query(
    b_slots,  # [BR, D]
    query,  # [B, h, K, D_in + 1] out
    query_weight,  # [D, h * (D_in + 1)]
    query_bias,  # [h * (D_in + 1)]
    norm_slots,  # [2, D] | None
    o_e,  # [BR], where a row begins in `query`
    m_r,  # [BR]
    K,
    norm_eps,
    D: tl.constexpr,
    D_IN: tl.constexpr,
    HEADS: tl.constexpr,
    BD: tl.constexpr,
    BI: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q- = LN(slots) Q + Q_0"""
    E: tl.constexpr = D_IN + 1
    o_d, o_i = tl.arange(0, BD), tl.arange(0, BI)
    m_d, m_i = o_d < D, o_i < D_IN
    b_x, _hat, _rstd = layer_norm(b_slots, norm_slots, m_r, o_d, m_d, norm_eps, D)
    for i_h in range(HEADS):
        p_w, p_b, p_q = query_weight + i_h * E, query_bias + i_h * E, query + i_h * K * E
        b_q = tl.zeros([b_x.shape[0], BI], tl.float32) + load_vector(p_b, o_i, m_i)[None, :]
        b_q = product(b_x, p_w, HEADS * E, 1, o_i, m_i, b_q, D, BC, PRECISION)
        store(p_q, b_q, o_e, o_i, m_r, m_i)
        b_w = load_vector(p_w + D_IN, o_d * (HEADS * E), m_d)  # [D]
        tl.store(p_q + o_e + D_IN, tl.sum(b_x * b_w[None, :], 1) + tl.load(p_b + D_IN), mask=m_r)


@triton.jit
def next_query_backward(
    partials,  # [P, B, h, K, D_in + 1], of the gradient to the query
    b_slots,  # [BR, D], that the query was made from
    query_weight,  # [D, h * (D_in + 1)]
    norm_slots,  # [2, D] | None
    slots_normed,  # [T * R, D] out
    d_query,  # [T * R, h * (D_in + 1)] out
    p_sums,  # [h * (D_in + 1) + 2 D] out: the gradients to Q_0 and to the LayerNorm, summed over the rows
    o_e,  # [BR], where a row begins in `partials`
    o_tr,  # [BR], t * R + r
    m_r,  # [BR]
    K,
    P,
    stride_p,
    norm_eps,
    D: tl.constexpr,
    D_IN: tl.constexpr,
    HEADS: tl.constexpr,
    BD: tl.constexpr,
    BI: tl.constexpr,
    BC: tl.constexpr,
    UNROLL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient to the slots [BR, D]."""
    E: tl.constexpr = D_IN + 1
    o_d, o_i = tl.arange(0, BD), tl.arange(0, BI)
    m_d, m_i = o_d < D, o_i < D_IN
    m = m_r[:, None] & m_i[None, :]
    b_d = tl.zeros(b_slots.shape, tl.float32)
    for i_h in range(HEADS):
        p_part = partials + o_e + i_h * K * E  # [BR]
        p_w, p_d, p_s = query_weight + i_h * E, d_query + i_h * E, p_sums + i_h * E
        b_dq = sum_parts(p_part[:, None] + o_i[None, :], m, stride_p, P, UNROLL)  # [BR, D_in]
        b_dc = sum_parts(p_part + D_IN, m_r, stride_p, P, UNROLL)  # [BR]
        store(p_d, b_dq, o_tr * (HEADS * E), o_i, m_r, m_i)
        tl.store(p_d + o_tr * (HEADS * E) + D_IN, b_dc, mask=m_r)
        store_column_sums(p_s, b_dq, o_i, m_i)
        tl.store(p_s + D_IN, tl.sum(b_dc, 0))
        b_d = product(b_dq, p_w, 1, HEADS * E, o_d, m_d, b_d, D_IN, BC, PRECISION)
        b_d += b_dc[:, None] * load_vector(p_w + D_IN, o_d * (HEADS * E), m_d)[None, :]
    b_x, b_hat, b_rstd = layer_norm(b_slots, norm_slots, m_r, o_d, m_d, norm_eps, D)
    if norm_slots is not None:
        b_d = normalise_backward(b_d, b_hat, b_rstd, norm_slots, p_sums + HEADS * E, o_d, m_d, D)
    store(slots_normed, b_x, o_tr * D, o_d, m_r, m_d)
    return b_d


@triton.jit
def gru_step(
    partials,  # [P, B, h, K, D_in + 1] | None
    sums,  # [B, h, K, D_in + 1], out where there are partial sums
    weighted_mean,  # [T * R, h * (D_in + 1)] out | None
    value_weight,  # [h * (D_in + 1), 3 D], without a GRU [.., D]
    value_bias,  # [3 D] or [D] | None
    recurrent_weight,  # [3 D, D] | None
    recurrent_bias,  # [3 D] | None
    b_slots,  # [BR, D]
    o_e,  # [BR], where a row begins in `sums`
    o_tr,  # [BR], t * R + r
    m_r,  # [BR]
    K,
    P,
    stride_p,
    eps,
    MEAN: tl.constexpr,
    D: tl.constexpr,
    D_IN: tl.constexpr,
    HEADS: tl.constexpr,
    BD: tl.constexpr,
    BI: tl.constexpr,
    BC: tl.constexpr,
    UNROLL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """h' and the GRU's r, z, n and W_hn h + b_hn, each [BR, D]; without a GRU, only h' means anything."""
    E: tl.constexpr = D_IN + 1
    # A row of the value weights: r, z, n, or the update alone.
    WIDTH_V: tl.constexpr = D if recurrent_weight is None else 3 * D
    AT_N: tl.constexpr = WIDTH_V - D  # where n begins in it
    o_d, o_i = tl.arange(0, BD), tl.arange(0, BI)
    m_d, m_i = o_d < D, o_i < D_IN
    b_r = tl.zeros(b_slots.shape, tl.float32)
    b_z = tl.zeros(b_slots.shape, tl.float32)
    b_n = tl.zeros(b_slots.shape, tl.float32)
    b_hn = tl.zeros(b_slots.shape, tl.float32)
    for i_h in range(HEADS):
        o_head = o_e + i_h * K * E
        p_v = value_weight + i_h * E * WIDTH_V
        if partials is None:
            b_m = load(sums, o_head, o_i, m_r, m_i)  # [BR, D_in]
            b_mass = load_vector(sums, o_head + D_IN, m_r)  # [BR]
        else:
            p_part = partials + o_head
            b_m = sum_parts(p_part[:, None] + o_i[None, :], m_r[:, None] & m_i[None, :], stride_p, P, UNROLL)
            b_mass = sum_parts(p_part + D_IN, m_r, stride_p, P, UNROLL)
            store(sums, b_m, o_head, o_i, m_r, m_i)
            tl.store(sums + o_head + D_IN, b_mass, mask=m_r)
        b_by = divisor(b_mass, eps, MEAN)
        b_m /= b_by[:, None]
        b_mass /= b_by
        if weighted_mean is not None:
            store(weighted_mean + i_h * E, b_m, o_tr * (HEADS * E), o_i, m_r, m_i)
            tl.store(weighted_mean + i_h * E + o_tr * (HEADS * E) + D_IN, b_mass, mask=m_r)
        b_n += b_mass[:, None] * load_vector(p_v + D_IN * WIDTH_V + AT_N, o_d, m_d)[None, :]
        if recurrent_weight is None:
            b_n = product(b_m, p_v, WIDTH_V, 1, o_d, m_d, b_n, D_IN, BC, PRECISION)
        else:
            b_r += b_mass[:, None] * load_vector(p_v + D_IN * WIDTH_V, o_d, m_d)[None, :]
            b_z += b_mass[:, None] * load_vector(p_v + D_IN * WIDTH_V + D, o_d, m_d)[None, :]
            b_r, b_z, b_n = products(
                b_m, b_m, b_m, p_v, D, WIDTH_V, 1, o_d, m_d, b_r, b_z, b_n, D_IN, BC, PRECISION,
            )  # fmt: skip
    if value_bias is not None:
        if recurrent_weight is not None:
            b_r += load_vector(value_bias, o_d, m_d)[None, :]
            b_z += load_vector(value_bias + D, o_d, m_d)[None, :]
        b_n += load_vector(value_bias + AT_N, o_d, m_d)[None, :]
    b_new = b_n
    if recurrent_weight is not None:
        b_r, b_z, b_hn = products(
            b_slots, b_slots, b_slots, recurrent_weight, D * D, 1, D, o_d, m_d, b_r, b_z, b_hn, D, BC, PRECISION,
        )  # fmt: skip
        if recurrent_bias is not None:
            b_r += load_vector(recurrent_bias, o_d, m_d)[None, :]
            b_z += load_vector(recurrent_bias + D, o_d, m_d)[None, :]
            b_hn += load_vector(recurrent_bias + 2 * D, o_d, m_d)[None, :]
        # h' = (1 - z) n + z h,  n = tanh(i_n + r h_n),  r, z = sigmoid(i + h)
        b_r, b_z = tl.sigmoid(b_r), tl.sigmoid(b_z)
        b_n = tanh(b_n + b_r * b_hn)
        b_new = b_n + b_z * (b_slots - b_n)
    return b_new, b_r, b_z, b_n, b_hn


@triton.jit
def mlp_step(
    b_new,  # [BR, D]
    b_slots,  # [BR, D]
    slot_mask,  # [B, K] | None
    norm_pre_ff,  # [2, D] | None
    hidden_weight,  # [H, D] | None
    hidden_bias,  # [H]
    out_weight,  # [D, H]
    out_bias,  # [D]
    o_r,  # [BR], where a row stands in `slot_mask`
    m_r,  # [BR]
    norm_eps,
    D: tl.constexpr,
    H: tl.constexpr,
    BD: tl.constexpr,
    BH: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """h'' from h' [BR, D]; the slots that take no part stay as they were."""
    o_d, o_h = tl.arange(0, BD), tl.arange(0, BH)
    m_d, m_h = o_d < D, o_h < H
    if hidden_weight is not None:
        b_x, _hat, _rstd = layer_norm(b_new, norm_pre_ff, m_r, o_d, m_d, norm_eps, D)
        b_new += load_vector(out_bias, o_d, m_d)[None, :]
        b_hidden = tl.zeros([b_new.shape[0], BH], tl.float32) + load_vector(hidden_bias, o_h, m_h)[None, :]
        b_hidden = relu(product(b_x, hidden_weight, 1, D, o_h, m_h, b_hidden, D, BC, PRECISION))  # [BR, H]
        b_new = product(b_hidden, out_weight, 1, H, o_d, m_d, b_new, H, BC, PRECISION)
    if slot_mask is not None:
        b_kept = tl.load(slot_mask + o_r, mask=m_r, other=0) != 0
        b_new = tl.where(b_kept[:, None], b_new, b_slots)
    return b_new
