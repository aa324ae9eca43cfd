"""The picture of a set predictor: what each slot attends to and says, and what is true of the object it means."""

from typing import BinaryIO, NamedTuple

import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from slotattn_fast.data.clevr_published import PROPERTIES
from slotattn_fast.data.properties import ATTRIBUTES, Properties
from slotattn_fast.report.page import (
    NEUTRAL,
    PALETTE,
    Line,
    colour,
    enlarged,
    segmentation,
    shares,
    to_unit,
    write_page,
)

SURE = 0.5
"""A slot with less confidence says that there is no object."""
FAR = 1.0
"""From this distance on a place counts as wrong: the paper's widest, in the units of the scene."""
MISSED = 0.6
"""Grey of the true objects that no slot means, out of 1."""

_WRONG = to_hex(PALETTE[5])
_PALE = "0.6"
_WORDS = ("size", "color", "material", "shape")  # as one says it


class _Found(NamedTuple):
    """Of a scene."""

    objects: dict[int, int]
    """The object that a slot means."""
    slots: dict[int, int]
    """The slot that an object is found by: the first of those that mean it."""


def draw_properties(
    file: BinaryIO,
    *,
    images: NDArray[np.float32],
    attention: NDArray[np.float32] | None,
    predicted: Properties,
    true: Properties,
    true_labels: NDArray[np.uint8] | None,
) -> None:
    """Writes a PNG with one row a scene, in the manner of the paper's Figure 6 and Table 1.

    Of R scenes with K slots and up to M objects, images [R, H, W, 3] hold values of -1..1 (clipped to that), attention
    [R, K, h, w] is over the encoder's map, of the image's size or smaller, predicted is [R, K], true [R, M], and
    true_labels [R, H, W] have n where the n-th object is seen and 0 for the background.

    The columns: the input, and below it the objects that no slot means; where there is attention, the segmentation by
    it, a pixel in the colour of the slot that attends most, the paler the less that slot dominates; where there are
    labels, the true objects, each in the colour of the slot that means it, or grey; then for each slot the image
    weighted by its attention, and below what it says: confidence that there is an object, size, color, material, shape,
    place on the ground, and how far that is, height too, from where the object stands. What is wrong has a cross. Slots
    with a confidence below 1/2 are pale. Without attention the slots are words alone.

    A slot means the object that average precision gives it: the nearest of those that agree with all it says of size,
    color, material and shape. Slots that agree with none then take the nearest of what is left, the surest first.
    """
    scenes = range(len(images))
    slots = predicted.real.shape[1]
    found = [_found(_scene(predicted, r), _scene(true, r)) for r in scenes]
    titles = ["input"]
    tiles: list[NDArray[np.floating]] = [to_unit(images)]
    weighted = []
    if attention is not None:
        # Over the slots, as it may be a softmax over the inputs.
        shared = attention / np.maximum(attention.sum(1, keepdims=True), np.finfo(np.float32).tiny)
        masks = enlarged(shared, images.shape[1])
        titles.append("segmentation")
        tiles.append(segmentation(masks))
        strength = np.where(predicted.real < SURE, 0.3, 1)[..., None, None, None]
        weighted = [1 - strength * (1 - shares(images[:, None], masks))]
    if true_labels is not None:
        titles.append("true objects")
        tiles.append(np.stack([_truth(labels, means) for labels, means in zip(true_labels, found, strict=True)]))
    first = len(tiles)
    captions = [
        [
            _missed(_scene(true, r), found[r]),
            *[()] * (first - 1),
            *(_said(_scene(predicted, r), k, _scene(true, r), found[r]) for k in range(slots)),
        ]
        for r in scenes
    ]
    write_page(
        file,
        np.concatenate([np.stack(tiles, axis=1), *weighted], axis=1),
        titles=[*titles, *(f"slot {k + 1}" for k in range(slots))],
        column_groups=[first],
        slots={first + k: k for k in range(slots)},
        row_groups=scenes[1:],
        captions=captions,
    )


def _scene(sets: Properties, r: int) -> Properties:
    return Properties(*(array[r] for array in sets))


def _found(predicted: Properties, true: Properties) -> _Found:
    real = true.real == 1
    distance = np.linalg.norm(predicted.coords[:, None] - true.coords, axis=-1)  # [K, M]
    agree = (predicted.attributes[:, None] == true.attributes).all(-1) & real
    ranked = [int(k) for k in np.argsort(-predicted.real, kind="stable") if predicted.real[k] >= SURE]
    found = _Found({}, {})
    for k in ranked:
        if agree[k].any():
            found.objects[k] = int(np.where(agree[k], distance[k], np.inf).argmin())
            found.slots.setdefault(found.objects[k], k)
    for k in ranked:
        left = [m for m in range(len(real)) if real[m] and m not in found.slots]
        if k not in found.objects and left:
            found.objects[k] = min(left, key=lambda m: distance[k, m])
            found.slots[found.objects[k]] = k
    return found


def _truth(labels: NDArray[np.uint8], found: _Found) -> NDArray[np.float64]:
    tile = np.full((*labels.shape, 3), NEUTRAL)
    tile[labels > 0] = MISSED
    for m, k in found.slots.items():
        tile[labels == m + 1] = colour(k)
    return tile


def _missed(true: Properties, found: _Found) -> list[Line]:
    missed = [m for m in range(len(true.real)) if true.real[m] == 1 and m not in found.slots]
    names = [Line(" ".join(_words(true, m)), _WRONG) for m in missed]
    return [Line("missed:", _WRONG), *names] if missed else []


def _said(predicted: Properties, k: int, true: Properties, found: _Found) -> list[Line]:
    percent = 100 * predicted.real[k]
    if predicted.real[k] < SURE:
        # 49.9 % is told as 49, as 50 is an object.
        return [Line(f"confidence {min(percent, 100 * SURE - 1):.0f} %", _PALE), Line("no object", _PALE)]
    sure = Line(f"confidence {percent:.0f} %")
    words = _words(predicted, k)
    x, y, _ = predicted.coords[k]
    place = Line(f"x {x:z.1f}  y {y:z.1f}")
    if k not in found.objects:
        return [sure, *map(Line, words), place, _wrong("no object is left")]
    m = found.objects[k]
    lines = [
        Line(word) if word == right else _wrong(f"{word}, is {right}")
        for word, right in zip(words, _words(true, m), strict=True)
    ]
    if found.slots[m] != k:
        return [sure, *lines, place, _wrong(f"same as slot {found.slots[m] + 1}")]
    distance = np.linalg.norm(predicted.coords[k] - true.coords[m])
    off = f"off by {distance:.2f}"
    return [sure, *lines, place, Line(off) if distance < FAR else _wrong(off)]


def _words(sets: Properties, number: int) -> list[str]:
    codes = dict(zip(ATTRIBUTES, sets.attributes[number], strict=True))
    return [PROPERTIES[name][codes[name]] for name in _WORDS]


def _wrong(text: str) -> Line:
    return Line(f"✗ {text}", _WRONG)
