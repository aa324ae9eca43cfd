"""The look-alikes of the published data sets, by the names of those: scenes as a function of (seed, index)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from numpy.typing import ArrayLike

from slotattn_fast.data.catalogue import CATALOGUE, GENERATED
from slotattn_fast.data.clevr_published import MAX_OBJECTS, MIN_OBJECTS
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.synthetic.clevr import sample_clevr
from slotattn_fast.data.synthetic.sprites import sample_sprites
from slotattn_fast.data.synthetic.tetrominoes import sample_tetrominoes

HELD_OUT_SEED = 0
FIRST_HELD_OUT = 2**40
"""Where the scenes for evaluation begin, which every training run is measured on: training counts from 0."""


def seed_and_first(split: str, seed: int) -> tuple[int, int]:
    """Where the scenes of the "train" or "eval" split of a seed are: those of this seed, from this index on."""
    return (seed, 0) if split == "train" else (HELD_OUT_SEED, FIRST_HELD_OUT)


def sampler(
    name: str, max_objects: int | None = None, device: str | torch.device = "cpu", size: int | None = None
) -> Callable[[int, ArrayLike], dict[str, Any]]:
    """A function of a seed and scene indices [B] to arrays, [B, ...] each, by the names of a prepared folder's.

    "clevr" and "clevr-with-masks" are the same scenes, in whole and cut to the middle, each with labels and properties.
    Their number of objects is uniform from 3 to `max_objects`, 10 if None: 6 is CLEVR6. They are drawn on `device`, in
    `size` x `size` pixels, 128 if None, and come as tensors on it, the others as NumPy arrays. Raises ValueError for
    another name, `DataError` for a `max_objects` that is out of range or of a data set other than CLEVR.
    """
    if name not in GENERATED:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(GENERATED)}")
    if name in ("clevr", "clevr-with-masks"):
        most = MAX_OBJECTS if max_objects is None else max_objects
        if not MIN_OBJECTS <= most <= MAX_OBJECTS:
            raise DataError(f"max_objects: got {most}, expected {MIN_OBJECTS} to {MAX_OBJECTS} for {name}")
        return partial(
            sample_clevr,
            num_objects=(MIN_OBJECTS, most),
            crop=name == "clevr-with-masks",
            size=CATALOGUE[name].image[0] if size is None else size,
            device=device,
        )
    if max_objects is not None:
        raise DataError(f"max_objects: got {max_objects} for {name}; only CLEVR is drawn with fewer objects: take that")
    if name == "tetrominoes":
        return sample_tetrominoes
    return partial(sample_sprites, variant=name.removeprefix("multi-dsprites-").replace("-", "_"))
