"""Average precision of predicted sets of objects: how many are found, how surely, and how near to their place."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

THRESHOLDS = (np.inf, 1.0, 0.5, 0.25, 0.125)
"""The paper's, in the units of CLEVR's scenes."""

Sets = tuple[ArrayLike, ArrayLike, ArrayLike]

_NUMBERS = (int, float, np.integer, np.floating)


def average_precision(pred: Sets, true: Sets, *, thresholds: Sequence[float] = THRESHOLDS) -> NDArray[np.float64]:
    """AP over all images together, at each threshold of distance.

    All predictions are ranked by confidence, equal ones in their order. Each takes the object of its image that is
    nearest among those whose attributes all agree with its own, the first of equally near ones. It is a true positive
    if that is nearer than the threshold and no prediction before it has claimed it, and a false positive otherwise:
    there is no second choice. AP is the area under precision, made to fall with recall, over all points.

    Args:
        pred: coordinates [B, K, 3], in the units of the thresholds; attributes, integers [B, K, A]; confidence [B, K]
            that there is an object, of which only the order counts.
        true: coordinates [B, M, 3]; attributes, integers [B, M, A]; real [B, M], 1 where there is an object, 0 where
            padding. M may differ from K.
        thresholds: T numbers above 0; infinity for any place.

    Returns:
        float64 [T] from 0 to 1, in the order of the thresholds. NaN if no object is real.

    Raises:
        TypeError: attributes that are not integers.
        ValueError: shapes that do not fit each other; coordinates (of padding aside) or confidence not finite; `real`
            other than 0 and 1; thresholds that are none, not numbers, NaN, or not above 0.

    Source: the paper, Appendix E.9, and the authors' released code, which leaves the order of equal confidences open.
    """
    return _average_precision(_checked(pred, true), _checked_thresholds(thresholds))


def ap_by_count(pred: Sets, true: Sets, *, thresholds: Sequence[float] = THRESHOLDS) -> dict[int, NDArray[np.float64]]:
    """`average_precision` over the images with exactly n real objects, for each n above 0 that occurs, rising."""
    arrays, limits = _checked(pred, true), _checked_thresholds(thresholds)
    counts = arrays.real.sum(1)
    return {
        int(n): _average_precision(_Arrays(*(array[counts == n] for array in arrays)), limits)
        for n in np.unique(counts[counts > 0])
    }


class _Arrays(NamedTuple):
    """Checked arguments; numbers in float64, where the differences of float32 are not rounded again to float32."""

    pred_coords: NDArray[np.float64]
    pred_attributes: NDArray[np.integer]
    confidence: NDArray[np.float64]
    true_coords: NDArray[np.float64]
    true_attributes: NDArray[np.integer]
    real: NDArray[np.bool_]


def _average_precision(arrays: _Arrays, thresholds: list[float]) -> NDArray[np.float64]:
    num_real = int(arrays.real.sum())
    if not num_real:
        return np.full(len(thresholds), np.nan)
    distance, nearest = _nearest(arrays)
    rank = np.argsort(-arrays.confidence, axis=None, kind="stable")
    distance, nearest = distance.ravel()[rank], nearest.ravel()[rank]

    scores = []
    for threshold in thresholds:
        near = np.flatnonzero(distance < threshold)
        _, claims = np.unique(nearest[near], return_index=True)  # the first of each object
        true_positive = np.zeros(len(rank), bool)
        true_positive[near[claims]] = True
        precision = true_positive.cumsum() / np.arange(1, len(rank) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        # Recall rises at true positives only, by 1 / num_real.
        scores.append(envelope[true_positive].sum() / num_real)
    return np.array(scores)


def _nearest(arrays: _Arrays) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of every prediction [B, K]: distance and number of the nearest object that agrees, infinite if none does.

    Objects, padding too, are numbered through all images.
    """
    pred_coords, pred_attributes, _, true_coords, true_attributes, real = arrays
    agree = (pred_attributes[:, :, None] == true_attributes[:, None]).all(-1) & real[:, None]
    distance = np.linalg.norm(pred_coords[:, :, None] - true_coords[:, None], axis=-1)
    distance = np.where(agree, distance, np.inf)  # [B, K, M]
    images, most = real.shape
    return distance.min(-1), distance.argmin(-1) + most * np.arange(images)[:, None]


def _checked(pred: Sets, true: Sets) -> _Arrays:
    coords, attributes, confidence = (np.asarray(array) for array in pred)
    true_coords, true_attributes, real = (np.asarray(array) for array in true)
    images, slots = confidence.shape if confidence.ndim == 2 else (-1, -1)
    kinds = attributes.shape[-1] if attributes.ndim else -1
    most = real.shape[-1] if real.ndim else -1
    for name, array, letters, shape in (
        ("confidence", confidence, "B, K", (images, slots)),
        ("predicted coordinates", coords, "B, K, 3", (images, slots, 3)),
        ("predicted attributes", attributes, "B, K, A", (images, slots, kinds)),
        ("real", real, "B, M", (images, most)),
        ("true coordinates", true_coords, "B, M, 3", (images, most, 3)),
        ("true attributes", true_attributes, "B, M, A", (images, most, kinds)),
    ):
        if array.shape != shape:
            wanted = "" if images < 0 else f" = {list(shape)}"
            raise ValueError(f"{name}: got shape {array.shape}, expected [{letters}]{wanted}")
    for name, array in (("predicted attributes", attributes), ("true attributes", true_attributes)):
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name}: got {array.dtype}, expected integers")
    _refuse("real", real, (real != 0) & (real != 1), "0 or 1")
    real = real.astype(bool)
    _refuse("predicted coordinates", coords, ~np.isfinite(coords), "finite numbers")
    _refuse("confidence", confidence, ~np.isfinite(confidence), "finite numbers")
    _refuse("true coordinates", true_coords, ~np.isfinite(true_coords) & real[..., None], "finite numbers")
    coords, confidence, true_coords = (array.astype(np.float64) for array in (coords, confidence, true_coords))
    return _Arrays(coords, attributes, confidence, true_coords, true_attributes, real)


def _refuse(name: str, array: NDArray[np.generic], bad: NDArray[np.bool_], expected: str) -> None:
    found = np.argwhere(bad)
    if len(found):
        raise ValueError(f"{name}: got {array[tuple(found[0])]!s} at {found[0].tolist()}, expected {expected}")


def _checked_thresholds(thresholds: Sequence[float]) -> list[float]:
    values = np.asarray(thresholds, object)
    if values.ndim != 1 or not len(values) or not all(isinstance(value, _NUMBERS) and value > 0 for value in values):
        raise ValueError(f"thresholds: got {thresholds!r}, expected one or more numbers above 0, or infinity")
    return [float(value) for value in values]
