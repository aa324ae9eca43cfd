"""The scenes of a split by their index: generated, mapped from a prepared folder, or held on the device."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slotattn_fast.data.catalogue import GENERATED, prepared_folder
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.generated import sampler, seed_and_first
from slotattn_fast.data.prepared import open_prepared

_PART_OF_FREE_MEMORY = 0.5
"""Of a device, that prepared arrays may take; the rest is the training's."""


@dataclass(frozen=True)
class Split:
    """Scenes 0, 1, ...; without end if `count` is None."""

    count: int | None
    read: Callable[[NDArray[np.int64]], dict[str, Tensor]]
    """Indices [B] to tensors [B, ...], by the names that `open_split` was given."""

    def at_most(self, number: int) -> int:
        """`number`, or how many scenes there are if fewer."""
        return number if self.count is None else min(number, self.count)


def open_split(
    data: str,
    split: str,
    names: Sequence[str],
    *,
    seed: int = 0,
    max_objects: int | None = None,
    device: torch.device | None = None,
    size: int | None = None,
    scenes: int | None = None,
) -> Split:
    """The "train" or "eval" split of `data`: the name of a data set that is generated, or a prepared folder.

    `names` are the arrays wanted: "images" uint8 [B, H, W, C], "labels" uint8 [B, H, W], and the others of a prepared
    folder. `seed` is of generated scenes to train on; those to evaluate are always the same. `max_objects` leaves out
    scenes with more objects. On a CUDA `device` prepared arrays are kept there if they fit in half of its free memory,
    and CLEVR is drawn there. `size` is the side of CLEVR's images where they are drawn, 128 if None. With `scenes`,
    generated data end after so many, each of which is drawn when it is first asked for, and kept.

    Raises `DataError` for a folder that cannot be used, has not all of `names`, or has no scene of so few objects; and,
    when it is first read, for `scenes` that memory cannot hold.
    """
    device = torch.device("cpu") if device is None else device
    if data in GENERATED:
        return _generated(data, split, names, seed, max_objects, device, size, scenes)
    if not Path(data).exists():
        raise DataError(
            f"data: got {data!r}, which is neither a prepared folder nor one of {', '.join(GENERATED)}; "
            "`slotattn data info NAME` says how to prepare one"
        )
    return _prepared(Path(data), split, names, max_objects, device)


def has_labels(data: str) -> bool:
    """Whether there are label maps of a data set that is generated, or of a prepared folder."""
    folder = prepared_folder(data)
    return folder is None or "labels" in open_prepared(folder).splits["train"]


def _generated(
    name: str,
    split: str,
    names: Sequence[str],
    seed: int,
    max_objects: int | None,
    device: torch.device,
    size: int | None,
    count: int | None,
) -> Split:
    of_seed, first = seed_and_first(split, seed)
    if not {"images", "labels"}.issuperset(names):
        known = sampler(name, None, device, size)(of_seed, [first])
        for key in names:
            if key not in known:
                raise DataError(_without(name, split, key, known))
    sample = sampler(name, max_objects, device, size)

    def read(indices: NDArray[np.int64]) -> dict[str, Tensor]:
        scenes = sample(of_seed, first + indices)
        return {key: torch.as_tensor(scenes[key]) for key in names}

    return Split(None, read) if count is None else Split(count, _kept(read, count))


def _kept(
    read: Callable[[NDArray[np.int64]], dict[str, Tensor]], count: int
) -> Callable[[NDArray[np.int64]], dict[str, Tensor]]:
    """The same as `read`, which is asked for each of `count` scenes once."""
    kept: dict[str, Tensor] = {}
    there = np.zeros(count, bool)

    def read_again(indices: NDArray[np.int64]) -> dict[str, Tensor]:
        new = np.unique(indices[~there[indices]])
        if len(new):
            for key, values in read(new).items():
                if key not in kept:
                    kept[key] = _room(values, count)
                kept[key][torch.from_numpy(new).to(values.device)] = values
            there[new] = True
        (device,) = {values.device for values in kept.values()}
        chosen = torch.from_numpy(indices).to(device)  # once: on a GPU the copy waits
        return {key: values[chosen] for key, values in kept.items()}

    return read_again


def _room(values: Tensor, count: int) -> Tensor:
    """For so many of the values [B, ...]."""
    try:
        return values.new_empty(count, *values.shape[1:])
    except (MemoryError, RuntimeError) as error:  # PyTorch has a plain RuntimeError for a CPU's memory
        size = count * values[0].nbytes / 1e9
        raise DataError(
            f"scenes: got {count}, which are kept in memory and take {size:.1f} GB of it, more than there is; train "
            "anew with fewer --scenes"
        ) from error


def _prepared(path: Path, split: str, names: Sequence[str], max_objects: int | None, device: torch.device) -> Split:
    arrays = open_prepared(path).splits[split]
    rows = np.arange(len(arrays["images"]))
    for key in (*names, "num_objects") if max_objects is not None else names:
        if key not in arrays:
            raise DataError(_without(str(path), split, key, arrays))
    if max_objects is not None:
        rows = np.flatnonzero(arrays["num_objects"] <= max_objects)
        if not len(rows):
            raise DataError(
                f"{path}: no scene of at most {max_objects} objects in its {split} split; raise max_objects"
            )

    tensors = {key: torch.from_numpy(arrays[key]) for key in names}
    where = device if device.type == "cuda" and _fits(tensors, device) else torch.device("cpu")
    if where.type == "cuda":
        tensors = {key: tensor.to(where) for key, tensor in tensors.items()}

    def read(indices: NDArray[np.int64]) -> dict[str, Tensor]:
        chosen = torch.from_numpy(rows[indices]).to(where)
        return {key: tensor[chosen] for key, tensor in tensors.items()}

    return Split(len(rows), read)


def _without(data: str, split: str, key: str, names: Iterable[str]) -> str:
    such_as = "clevr-with-masks" if key == "labels" else "clevr"
    return f"{data}: has no {key} in its {split} split, only {', '.join(names)}; use data that has them, as {such_as}"


def _fits(tensors: dict[str, Tensor], device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return sum(tensor.nbytes for tensor in tensors.values()) <= _PART_OF_FREE_MEMORY * free
