"""What the kernels over the inputs have in common, a block of BN inputs and C columns at a time.

A column is a slot of a head, heads first: C = BLOCK_H * BLOCK_K columns, each factor padded to a power of two.
"""

import triton
import triton.language as tl

# The interpreter truncates float32 to bfloat16 and cannot compute in it: `round_to` and `dot` work around both.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def round_to(b, DTYPE: tl.constexpr):
    """To the type of a dot's operands, to nearest and ties to even."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        b_bits = b.to(tl.int32, bitcast=True)
        b_bits = (b_bits + 0x7FFF + ((b_bits >> 16) & 1)) >> 16 << 16
        b = b_bits.to(tl.float32, bitcast=True)
    return b.to(DTYPE)


@triton.jit
def unit(b, AXIS: tl.constexpr, DTYPE: tl.constexpr):
    """What b is divided by before it is rounded: 1, but in float16 the largest |b| along AXIS (kept, of size 1).

    That is cut off to a power of two, so that dividing by it is exact.
    """
    b_unit = 1.0
    if DTYPE == tl.float16:
        b_largest = tl.max(tl.abs(b), AXIS, keep_dims=True)
        b_power = (b_largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        b_unit = tl.where(b_largest > 1e-30, b_power, 1.0)
    return b_unit


@triton.jit
def round_in_units(b, AXIS: tl.constexpr, DTYPE: tl.constexpr):
    """b in its units and rounded, and the units."""
    b_unit = unit(b, AXIS, DTYPE)
    return round_to(b * (1.0 / b_unit), DTYPE), b_unit


@triton.jit
def dot(b_left, b_right):
    """left right in float32. Not in TF32: Triton 3.6 and 3.9 do not compile a transposed operand of it for sm_90."""
    if INTERPRETED:
        b_left, b_right = b_left.to(tl.float32), b_right.to(tl.float32)
    return tl.dot(b_left, b_right, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def identity(SIZE: tl.constexpr, DTYPE: tl.constexpr):
    """The identity matrix [SIZE, SIZE]. Its product with a block is that block to the bit, in registers."""
    o = tl.arange(0, SIZE)
    return round_to(tl.where(o[:, None] == o[None, :], 1.0, 0.0), DTYPE)


@triton.jit
def columns(K, heads, slot_mask_ptr, i_b, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    """Of each column [C]: its row among the h * K of an image, if it exists (m_c), and if it takes part (m_part)."""
    o_c = tl.arange(0, BLOCK_H * BLOCK_K)
    i_h, i_k = o_c // BLOCK_K, o_c % BLOCK_K
    m_part = i_k < K  # also in the padded heads: a softmax over nothing would be NaN
    if slot_mask_ptr is not None:
        m_part = tl.load(slot_mask_ptr + i_b * K + i_k, mask=m_part, other=0) != 0
    return i_h * K + i_k, (i_k < K) & (i_h < heads), m_part


@triton.jit
def softmax(b_l, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, HAS_SLOT_MASK: tl.constexpr):
    """a_nk [BN, C]: softmax over the slots of each head; 0 throughout where no slot takes part."""
    BLOCK_N: tl.constexpr = b_l.shape[0]
    if BLOCK_H > 1:
        b_l = tl.reshape(b_l, [BLOCK_N, BLOCK_H, BLOCK_K])
    SLOTS: tl.constexpr = len(b_l.shape) - 1
    b_max = tl.max(b_l, SLOTS, keep_dims=True)
    if HAS_SLOT_MASK:
        b_max = tl.where(b_max == -float("inf"), 0.0, b_max)
    b_e = tl.exp2((b_l - b_max) * LOG2_E)  # unlike exp it flushes denormals to 0, which saves 3 instructions
    b_sum = tl.sum(b_e, SLOTS, keep_dims=True)
    if HAS_SLOT_MASK:
        b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)
    return tl.reshape(b_e * (1.0 / b_sum), [BLOCK_N, BLOCK_H * BLOCK_K])


@triton.jit
def softmax_backward(b_a, b_da, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
    """dl_nk = a_nk (da_nk - sum_j a_nj da_nj) [BN, C]."""
    BLOCK_N: tl.constexpr = b_a.shape[0]
    if BLOCK_H > 1:
        b_a = tl.reshape(b_a, [BLOCK_N, BLOCK_H, BLOCK_K])
        b_da = tl.reshape(b_da, [BLOCK_N, BLOCK_H, BLOCK_K])
    b_dl = b_a * (b_da - tl.sum(b_a * b_da, len(b_a.shape) - 1, keep_dims=True))
    return tl.reshape(b_dl, [BLOCK_N, BLOCK_H * BLOCK_K])


@triton.jit
def row_statistics(b_x, o_d, norm_eps, D_IN: tl.constexpr):
    """mu_n and r_n [BN] of rows [BN, BD]."""
    if b_x.dtype == tl.float32:
        b_sum = tl.sum(b_x, 1)
    else:  # on the tensor cores, which are idle; every column is the sum
        b_ones = round_to(tl.full([b_x.shape[1], 16], 1.0, tl.float32), b_x.dtype)
        b_sum = tl.max(dot(b_x, b_ones), 1)
    b_mean = b_sum / D_IN
    b_centred = tl.where(o_d[None, :] < D_IN, b_x.to(tl.float32) - b_mean[:, None], 0.0)
    return b_mean, tl.rsqrt(tl.sum(b_centred * b_centred, 1) / D_IN + tl.cast(norm_eps, tl.float32))


@triton.jit
def pair_columns(b_even, b_odd):
    """[.., C] each to [.., 2 C]: column 2 c from the one and 2 c + 1 from the other."""
    b = tl.join(b_even, b_odd)
    return tl.reshape(b, [b.shape[0], 2 * b.shape[1]])


@triton.jit
def split_columns(b):
    """The reverse of `pair_columns`."""
    return tl.split(tl.reshape(b, [b.shape[0], b.shape[1] // 2, 2]))


@triton.jit
def normalised_products(b_z, b_row_sum, b_mean, b_rstd, NORM: tl.constexpr, CENTRED: tl.constexpr):
    """x^_n . row = r_n (x_n . row - mu_n sum_d row_d) [BN, C], from the products with x or with x - mu."""
    if NORM:
        if not CENTRED:
            b_z -= b_mean[:, None] * b_row_sum[None, :]
        b_z *= b_rstd[:, None]
    return b_z
