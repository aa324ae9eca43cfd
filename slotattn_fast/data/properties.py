"""Sets of objects as vectors of 19 numbers each, which property prediction learns: their layout, both ways.

Paper, section 4.2 and Appendix E.8; in the order of the authors' released code.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from slotattn_fast.data.clevr_published import PROPERTIES
from slotattn_fast.data.errors import DataError

LAYOUT = {
    "coords": slice(0, 3),
    "size": slice(3, 5),
    "material": slice(5, 7),
    "shape": slice(7, 10),
    "color": slice(10, 18),
    "real": slice(18, 19),
}
"""Where a vector has what: coords from 0 to 1, the attributes one-hot by their codes, real 1 or, of padding, 0."""
NUM_FEATURES = 19

ATTRIBUTES = ("size", "material", "shape", "color")
NAMES = ("coords", *ATTRIBUTES, "num_objects")
"""The arrays of a prepared folder that `targets_of` takes."""

COORDS_LIMIT = 3.0
"""CLEVR's objects stand at x and y from -3 to 3, their centres at z from 0.2 to 0.7; all are scaled alike."""
_REAL = (np.dtype(np.float32),)
# Those that PyTorch computes with, in this machine's order of bytes.
_CODES = tuple(np.dtype(name) for name in ("uint8", "int8", "int16", "int32", "int64"))
# What another writer's rounding may add.
_COORDS_MARGIN = 1e-3


class Properties(NamedTuple):
    """Sets of K objects of B images."""

    coords: NDArray[np.float64]
    """[B, K, 3], in the units of the scene."""
    attributes: NDArray[np.int64]
    """[B, K, 4], codes, in the order of `ATTRIBUTES`."""
    real: NDArray[np.float64]
    """[B, K]: 1 where there is an object and 0 where not; of predictions, the confidence that there is one."""


def targets_of(scenes: Mapping[str, Tensor], num_slots: int) -> Tensor:
    """Target vectors [B, num_slots, 19] in float32 of the arrays `NAMES`, on their device and without waiting for it.

    `scenes` are coords [B, M, 3], size, material, shape, color [B, M] and num_objects [B] as in a prepared folder. Rows
    past the last object are 0, whatever the arrays have there. Of a scene with more than `num_slots` objects only the
    first come, and a code beyond its property's labels gives no 1: check the data before (`check_properties`).
    """
    coords = (scenes["coords"].float() + COORDS_LIMIT) / (2 * COORDS_LIMIT)
    most, device = coords.shape[1], coords.device
    # Compared, as torch's one_hot takes no uint8.
    one_hot = [scenes[name][..., None] == torch.arange(len(PROPERTIES[name]), device=device) for name in ATTRIBUTES]
    real = (torch.arange(most, device=device) < scenes["num_objects"][:, None])[..., None]
    vectors = torch.cat([coords, *one_hot, real], dim=-1).masked_fill(~real, 0)
    return F.pad(vectors, (0, 0, 0, num_slots - most))  # cuts off where negative


def properties_of(vectors: Tensor) -> Properties:
    """What predicted or target vectors [B, K, 19] say, as arrays on the CPU: of each attribute the largest entry.

    Raises ValueError for another shape and for entries that are not finite.
    """
    if vectors.ndim != 3 or vectors.shape[-1] != NUM_FEATURES:
        raise ValueError(f"vectors: got shape {tuple(vectors.shape)}, expected [B, K, {NUM_FEATURES}]")
    values = vectors.detach().double().cpu().numpy()
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"vectors: got {values[tuple(bad[0])]} at {bad[0].tolist()}, expected finite numbers")
    coords = 2 * COORDS_LIMIT * values[..., LAYOUT["coords"]] - COORDS_LIMIT
    attributes = np.stack([values[..., LAYOUT[name]].argmax(-1) for name in ATTRIBUTES], axis=-1)
    return Properties(coords, attributes, values[..., LAYOUT["real"]].squeeze(-1))


def check_properties(where: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuses arrays of a whole split of which `targets_of` would make wrong targets; padding is not looked at.

    Raises `DataError` for the first array of `NAMES` with another shape or kind of numbers, with coordinates that are
    not finite or outside -3 to 3, with codes beyond their property's labels, or more objects than rows. It begins with
    `where`, which names the folder and the split, and has the array's name, the index and the value.
    """
    shape = arrays["coords"].shape[:2]
    shapes = {"coords": (*shape, 3), "num_objects": shape[:1]}
    for name in NAMES:
        types, words = (_REAL, "float32") if name == "coords" else (_CODES, "uint8 or signed integers")
        array, expected = arrays[name], shapes.get(name, shape)
        if array.dtype not in types or array.shape != expected:
            raise DataError(
                f"{where}: {name} is {array.dtype} {list(array.shape)}, expected {words} {list(expected)}; {_REMEDY}"
            )
    count = arrays["num_objects"]
    _refuse(where, "num_objects", count, (count < 0) | (count > shape[1]), f"0 to {shape[1]}")
    exists = np.arange(shape[1]) < count[:, None]
    outside = ~(np.abs(arrays["coords"]) <= COORDS_LIMIT + _COORDS_MARGIN)  # also what is not a number
    _refuse(where, "coords", arrays["coords"], exists[..., None] & outside, f"{-COORDS_LIMIT:g} to {COORDS_LIMIT:g}")
    for name in ATTRIBUTES:
        codes, labels = arrays[name], len(PROPERTIES[name])
        _refuse(where, name, codes, exists & ((codes < 0) | (codes >= labels)), f"0 to {labels - 1}")


def _refuse(where: str, name: str, array: NDArray[Any], bad: NDArray[np.bool_], expected: str) -> None:
    found = np.argwhere(bad)
    if len(found):
        index = found[0].tolist()
        raise DataError(f"{where}: {name}{index} is {array[tuple(index)]!s}, expected {expected}; {_REMEDY}")


_REMEDY = "make it anew with `slotattn data prepare` or `generate`"
