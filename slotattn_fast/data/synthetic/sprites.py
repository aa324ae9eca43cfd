"""Multi-dSprites scenes: ovals, hearts and squares that may cover each other, on one background colour.

The looks are those of DeepMind's Multi-Object Datasets (github.com/deepmind/multi_object_datasets, Multi-dSprites):
image size, kinds of shapes, numbers of sprites and what is coloured in each variant. Scales, orientations and places
are the values of dSprites (github.com/deepmind/dsprites-dataset). Neither publishes how it draws, so these are ours:
the outlines, the bounds of saturation and value, and that every sprite shows at least `MIN_VISIBLE` pixels.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slotattn_fast.data.synthetic.random import below, random_words, uniform

IMAGE_SIZE = 64
PATCH_SIZE = 24
MIN_VISIBLE = 16
"""Pixels of a sprite that later ones leave; the smallest sprite has 46."""

# Fewest and most sprites of a scene.
NUM_SPRITES = {"binarized": (2, 3), "colored_on_grayscale": (2, 5), "colored_on_colored": (1, 4)}

SHAPES = ("oval", "heart", "square")
SCALES = np.arange(5, 11) / 10
ORIENTATIONS = np.arange(40) * (2 * np.pi / 39)  # the last is the first again, as in dSprites
NUM_PLACES = 32  # along each axis

# At scale 1 every outline touches the circle of this radius about the patch's middle, so that it fits at any
# orientation. In pixels, as are the half axes of the oval.
_RADIUS = 10.0
_OVAL = (10.0, 6.0)

# Least saturation and value of the sprites on grey: their largest and smallest channel are then at least 63 of 255
# apart, and no grey background hides them.
_LEAST_COLOUR = 0.5

# Streams of a seed: number and colours, then one stream for each round of tries.
_LOOKS, _SPRITES_FROM = 0, 1


class _Masks(NamedTuple):
    """The pixels of all sprites, one sprite [shape, scale, orientation] after the other."""

    offsets: NDArray[np.int64]  # of a pixel in the image, from the patch's top left corner
    starts: NDArray[np.int64]  # [720], of a sprite in `offsets`
    areas: NDArray[np.int64]  # [720], pixels


def sample_sprites(seed: int, scenes: ArrayLike, variant: str) -> dict[str, NDArray[np.uint8]]:
    """The scenes of these indices [B] of a seed; a scene depends on seed, index and variant alone.

    The number of sprites N is uniform on `NUM_SPRITES[variant]`. Shape, scale, orientation and place are independent
    and uniform; those of a scene are drawn anew until every sprite shows `MIN_VISIBLE` pixels. Sprites are painted in
    order, without antialiasing, the later over the earlier.

    binarized: white on black. colored_on_grayscale: sprites of uniform hue, and saturation and value uniform on
    0.5..1, on a uniform grey. colored_on_colored: sprites and background uniform over all RGB.

    Returns images [B, 64, 64, C] of 0..255 (C = 1 binarized, else 3: RGB), labels [B, 64, 64] (0 background, 1 to N
    the visible part of the sprites in the order of painting) and num_objects [B], N. Raises ValueError for an unknown
    variant and for a negative seed or index.
    """
    if variant not in NUM_SPRITES:
        raise ValueError(f"variant: got {variant!r}, expected one of {', '.join(NUM_SPRITES)}")
    indices = np.asarray(scenes, np.int64)
    fewest, most = NUM_SPRITES[variant]
    words = random_words(seed, _LOOKS, indices, 1 + 3 * (most + 1))
    counts = fewest + below(words[:, 0], most - fewest + 1)
    labels = _arrange(seed, indices, counts, most)
    palette = _palette(variant, words[:, 1:].reshape(-1, most + 1, 3))  # [B, 1 + most, C]
    colours = labels + np.arange(len(indices))[:, None, None] * (most + 1)
    images = palette.reshape(-1, palette.shape[-1]).take(colours, axis=0)
    return {"images": images, "labels": labels, "num_objects": counts.astype(np.uint8)}


def _arrange(seed: int, scenes: NDArray[np.int64], counts: NDArray[np.int64], most: int) -> NDArray[np.uint8]:
    """Labels [B, 64, 64] of scenes of so many sprites [B], `most` at most, by rejection."""
    labels = np.empty((len(scenes), IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    waiting = np.arange(len(scenes))
    stream = _SPRITES_FROM
    while len(waiting):
        words = random_words(seed, stream, scenes[waiting], most * 5).reshape(-1, most, 5)
        factors = below(words, [len(SHAPES), len(SCALES), len(ORIENTATIONS), NUM_PLACES, NUM_PLACES])
        tries, visible = _paint(factors, counts[waiting])
        found = ((visible >= MIN_VISIBLE) | (np.arange(most) >= counts[waiting, None])).all(axis=1)
        labels[waiting[found]] = tries[found]
        waiting = waiting[~found]
        stream += 1
    return labels


def _paint(factors: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Labels [B, 64, 64], and pixels that each sprite shows [B, most], of the first `counts` [B] sprites.

    `factors` [B, most, 5]: shape, scale, orientation, place from the left and from the top, as indices.
    """
    masks = _masks()
    shape, scale, orientation, x, y = np.moveaxis(factors, -1, 0)
    sprites = (shape * len(SCALES) + scale) * len(ORIENTATIONS) + orientation  # [B, most]
    left, top = (place * (IMAGE_SIZE - PATCH_SIZE) // (NUM_PLACES - 1) for place in (x, y))
    corners = (np.arange(len(counts))[:, None] * IMAGE_SIZE + top) * IMAGE_SIZE + left  # [B, most]

    labels = np.zeros((len(counts), IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    pixels = labels.reshape(-1)
    painted = []
    for i in range(factors.shape[1]):
        (present,) = np.nonzero(i < counts)
        areas = masks.areas[sprites[present, i]]
        # Where a sprite's pixels are in `offsets`, less where they come in this list of all pixels to paint.
        skipped = masks.starts[sprites[present, i]] - (np.cumsum(areas) - areas)
        offsets = masks.offsets[np.repeat(skipped, areas) + np.arange(areas.sum())]
        where = np.repeat(corners[present, i], areas) + offsets
        pixels[where] = i + 1
        painted.append((present, areas, where))

    visible = np.zeros(sprites.shape, dtype=np.int64)
    for i, (present, areas, where) in enumerate(painted):
        visible[present, i] = np.add.reduceat(pixels[where] == i + 1, np.cumsum(areas) - areas, dtype=np.int64)
    return labels, visible


def _palette(variant: str, words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Colours [B, 1 + most, C], the background's first, from words [B, 1 + most, 3]."""
    if variant == "binarized":
        white = np.full((*words.shape[:2], 1), 255, dtype=np.uint8)
        white[:, 0] = 0
        return white
    if variant == "colored_on_colored":
        return below(words, 256).astype(np.uint8)
    hue, saturation, value = np.moveaxis(uniform(words), -1, 0)
    colours = _rgb(hue, *(_LEAST_COLOUR + (1 - _LEAST_COLOUR) * x for x in (saturation, value)))
    colours[:, 0] = below(words[:, 0, :1], 256)
    return colours


def _rgb(hue: NDArray[np.float64], saturation: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.uint8]:
    """RGB [..., 3] of 0..255 of HSV [...], all in 0..1."""
    sector = (np.array([5, 3, 1]) + 6 * hue[..., None]) % 6
    chroma = (value * saturation)[..., None] * np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return np.rint((value[..., None] - chroma) * 255).astype(np.uint8)


@cache
def _masks() -> _Masks:
    inside = rasterise().reshape(-1, PATCH_SIZE, PATCH_SIZE)
    sprite, row, column = np.nonzero(inside)
    areas = np.bincount(sprite)
    return _Masks(row * IMAGE_SIZE + column, np.cumsum(areas) - areas, areas)


def rasterise() -> NDArray[np.bool_]:
    """The pixels of a patch whose middles lie within the sprite [3 shapes, 6 scales, 40 orientations, 24, 24]."""
    # Rounded, so that the last bit of a machine's sine decides nothing; all else is exact or rounded as IEEE 754 says.
    cosine, sine = (np.rint(f(ORIENTATIONS)[:, None, None] * 2**20) / 2**20 for f in (np.cos, np.sin))
    middle = np.arange(PATCH_SIZE) + 0.5 - PATCH_SIZE / 2
    x, y = middle, -middle[:, None]  # y upwards
    # The sprite turns counterclockwise, its pixels back again: [1, 40, 24, 24], in pixels at scale 1.
    scales = SCALES[:, None, None, None]
    u, v = (x * cosine + y * sine) / scales, (y * cosine - x * sine) / scales
    return np.stack([_in_oval(u, v), _in_heart(u, v), _in_square(u, v)])


def _in_oval(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (u / _OVAL[0]) ** 2 + (v / _OVAL[1]) ** 2 <= 1


def _in_square(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    return 2 * np.maximum(np.abs(u), np.abs(v)) ** 2 <= _RADIUS**2


def _in_heart(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A square of side 1 that stands on a corner, and a half disc on each of its upper sides."""
    root = np.sqrt(0.5)
    # The circle around the heart has its middle this much above the square's, and the radius `low + root`.
    low = (np.sqrt(2) - 1) / (3 * np.sqrt(2) - 2)
    u, v = np.abs(u) * ((low + root) / _RADIUS), v * ((low + root) / _RADIUS) + low
    # The discs' middles are those of the sides, root / 2 to the right (or left) of the square's and above it.
    return (u + np.abs(v) <= root) | ((u - root / 2) ** 2 + (v - root / 2) ** 2 <= 0.25)
