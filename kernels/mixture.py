# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disable-error-code=assignment
"""The end of the spatial broadcast decoder in Triton: the image that K slots make together, and its squared error.

B images of C channels and N = H * W pixels. Slot k draws the colours x_knc and says by the logit l_kn where it draws:

    a_kn  = softmax over the slots of l_kn               the masks
    y_nc  = sum_k a_kn x_knc                             the reconstruction
    e_nc  = y_nc - image_nc
    loss  = sum over b, n, c of e_nc^2 / (B N C)

and backward, with de_nc = 2 e_nc dloss / (B N C),

    dx_knc = a_kn de_nc
    dl_kn  = a_kn sum_c de_nc (x_knc - y_nc)

A program takes BN pixels of an image with all of their K slots: the softmax is local to a pixel, so the maps are read
once, and nothing of their size is kept between forward and backward. Every channel is a block [BK, BN] of its own, so
that a thread has all slots of its pixels; where a pixel's channels lie together, they are moved together.
"""

import triton
import triton.language as tl

from .blocks import LOG2_E, round_to


@triton.jit
def program(tiles, BN: tl.constexpr):
    """The image of this program, in int64 for the sake of offsets, and the first of its pixels."""
    return (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * BN


@triton.jit
def pixel_offsets(o_n, W, stride_h, stride_w, FLAT: tl.constexpr):
    """[BN]; with FLAT, a row begins at the distance of a pixel from the end of the last."""
    if FLAT:
        o_pixel = o_n.to(tl.int64) * stride_w
    else:
        o_pixel = (o_n // W).to(tl.int64) * stride_h + (o_n % W).to(tl.int64) * stride_w
    return o_pixel


@triton.jit
def map_elements(
    i_b, first, N, K, W, stride_b, stride_k, stride_h, stride_w,
    FLAT: tl.constexpr, TOGETHER: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The offsets of a pixel's first channels, as many as lie together, and whether they exist [BK, BN * TOGETHER].

    Strides are in units of TOGETHER elements, so that the compiler knows that it divides them. In two dimensions, as
    Triton 3.6 gives the lanes of a warp to the slots, not to the pixels, where a third has the channels.
    """
    o_k, o_e = tl.arange(0, BK), tl.arange(0, BN * TOGETHER)
    o_n = first + o_e // TOGETHER
    o_kn = i_b * stride_b + o_k.to(tl.int64)[:, None] * stride_k
    o_kn = o_kn + pixel_offsets(o_n, W, stride_h, stride_w, FLAT)[None, :]
    return o_kn * TOGETHER + (o_e % TOGETHER)[None, :], (o_k < K)[:, None] & (o_n < N)[None, :]


@triton.jit
def load_channels(maps, o_kn, m_kn, stride_c, C: tl.constexpr, TOGETHER: tl.constexpr):
    """The C + 1 channels, each [BK, BN] in float32."""
    if TOGETHER == 1:
        b_channels = ()
        for c in tl.static_range(C + 1):
            b_x = tl.load(maps + o_kn + c * tl.cast(stride_c, tl.int64), mask=m_kn, other=0.0)
            b_channels += (b_x.to(tl.float32),)
    else:
        b_x = tl.load(maps + o_kn, mask=m_kn, other=0.0).to(tl.float32)
        if TOGETHER == 2:
            b_channels = tl.split(tl.reshape(b_x, [b_x.shape[0], b_x.shape[1] // 2, 2]))
        else:
            b_02, b_13 = tl.split(tl.reshape(b_x, [b_x.shape[0], b_x.shape[1] // 4, 2, 2]))
            b_0, b_2 = tl.split(b_02)
            b_1, b_3 = tl.split(b_13)
            b_channels = (b_0, b_1, b_2, b_3)
    return b_channels


@triton.jit
def store_channels(maps, b_channels, o_kn, m_kn, stride_c, C: tl.constexpr, TOGETHER: tl.constexpr):
    """The reverse of `load_channels`."""
    if TOGETHER == 1:
        for c in tl.static_range(C + 1):
            b_x = round_to(b_channels[c], maps.dtype.element_ty)
            tl.store(maps + o_kn + c * tl.cast(stride_c, tl.int64), b_x, mask=m_kn)
    else:
        if TOGETHER == 2:
            b_x = tl.join(b_channels[0], b_channels[1])
        else:
            b_x = tl.join(tl.join(b_channels[0], b_channels[2]), tl.join(b_channels[1], b_channels[3]))
        tl.store(maps + o_kn, round_to(tl.reshape(b_x, o_kn.shape), maps.dtype.element_ty), mask=m_kn)


@triton.jit
def softmax(b_l, K):
    """a_kn [BK, BN] from the logits; 0 for k >= K."""
    b_l = tl.where((tl.arange(0, b_l.shape[0]) < K)[:, None], b_l, -float("inf"))
    b_a = tl.exp2((b_l - tl.max(b_l, 0)[None, :]) * LOG2_E)
    return b_a * (1.0 / tl.sum(b_a, 0))[None, :]


@triton.jit
def mixture_loss_fwd_kernel(
    maps,  # [B, K, C + 1, H, W]: the colours, then the logit
    images,  # [B, C, H, W]
    partials,  # [B * tiles] out, float32: their sum is the loss
    stride_mb,
    stride_mk,
    stride_mc,
    stride_mh,
    stride_mw,
    stride_ib,
    stride_ic,
    stride_ih,
    stride_iw,
    K,
    N,  # H * W
    W,
    tiles,  # programs an image
    scale,  # 1 / (B N C)
    C: tl.constexpr,
    FLAT: tl.constexpr,
    TOGETHER: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    i_b, first = program(tiles, BN)
    o_kn, m_kn = map_elements(
        i_b, first, N, K, W, stride_mb, stride_mk, stride_mh, stride_mw, FLAT, TOGETHER, BN, BK
    )  # fmt: skip
    b_x = load_channels(maps, o_kn, m_kn, stride_mc, C, TOGETHER)
    b_a = softmax(b_x[C], K)
    o_n = first + tl.arange(0, BN)
    m_n = o_n < N
    images += i_b * stride_ib + pixel_offsets(o_n, W, stride_ih, stride_iw, FLAT)
    b_loss = tl.zeros([BN], tl.float32)
    for c in tl.static_range(C):
        b_image = tl.load(images + c * tl.cast(stride_ic, tl.int64), mask=m_n, other=0.0).to(tl.float32)
        b_e = tl.sum(b_a * b_x[c], 0) - b_image  # [BN]; 0 beyond N
        b_loss += b_e * b_e
    tl.store(partials + tl.program_id(0), tl.sum(b_loss, 0) * tl.cast(scale, tl.float32))


@triton.jit
def mixture_loss_bwd_kernel(
    d_loss,  # [1], float32
    maps,  # [B, K, C + 1, H, W]
    images,  # [B, C, H, W]
    d_maps,  # [B, K, C + 1, H, W] out
    stride_mb,
    stride_mk,
    stride_mc,
    stride_mh,
    stride_mw,
    stride_ib,
    stride_ic,
    stride_ih,
    stride_iw,
    stride_db,
    stride_dk,
    stride_dc,
    stride_dh,
    stride_dw,
    K,
    N,  # H * W
    W,
    tiles,  # programs an image
    scale,  # 2 / (B N C)
    C: tl.constexpr,
    FLAT: tl.constexpr,
    TOGETHER: tl.constexpr,
    TOGETHER_D: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    i_b, first = program(tiles, BN)
    o_kn, m_kn = map_elements(
        i_b, first, N, K, W, stride_mb, stride_mk, stride_mh, stride_mw, FLAT, TOGETHER, BN, BK
    )  # fmt: skip
    b_x = load_channels(maps, o_kn, m_kn, stride_mc, C, TOGETHER)
    b_a = softmax(b_x[C], K)
    o_n = first + tl.arange(0, BN)
    m_n = o_n < N
    images += i_b * stride_ib + pixel_offsets(o_n, W, stride_ih, stride_iw, FLAT)
    scale = tl.load(d_loss) * tl.cast(scale, tl.float32)
    b_dl = tl.zeros([BK, BN], tl.float32)
    b_dx = ()
    for c in tl.static_range(C):
        b_image = tl.load(images + c * tl.cast(stride_ic, tl.int64), mask=m_n, other=0.0).to(tl.float32)
        b_y = tl.sum(b_a * b_x[c], 0)  # [BN]
        b_de = (b_y - b_image) * scale
        b_dx += (b_a * b_de[None, :],)
        b_dl += b_de[None, :] * (b_x[c] - b_y[None, :])
    b_dx += (b_a * b_dl,)
    o_kn, m_kn = map_elements(
        i_b, first, N, K, W, stride_db, stride_dk, stride_dh, stride_dw, FLAT, TOGETHER_D, BN, BK
    )  # fmt: skip
    store_channels(d_maps, b_dx, o_kn, m_kn, stride_dc, C, TOGETHER_D)
