"""DeepMind's Multi-Object Datasets: what their files hold, and the scenes in them.

Source: Kabra et al., 2019, github.com/google-deepmind/multi_object_datasets, the feature descriptions in
clevr_with_masks.py, multi_dsprites.py, objects_room.py and tetrominoes.py.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slotattn_fast.data.errors import DataError
from slotattn_fast.data.tfrecord import ExampleError, decode_example, read_records

_BYTES, _FLOATS = np.dtype(np.uint8), np.dtype(np.float32)


@dataclass(frozen=True)
class Schema:
    """What a record of a data set holds besides the image and the mask, both bytes."""

    entities: tuple[int, ...]
    """E, the background and the most objects there can be; where there are several, each published file has one."""
    image: tuple[int, int, int]
    """Height H, width W, channels."""
    mask_entities_last: bool = False
    """Masks lie on the disk as [H, W, E] and not as [E, H, W]."""
    factors: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]] = field(default_factory=dict)
    """For each generative factor of the entities its type, and its shape after [E]."""


def _multi_dsprites(entities: int, channels: int) -> Schema:
    return Schema(
        entities=(entities,),
        image=(64, 64, channels),
        mask_entities_last=True,
        factors={
            "x": (_FLOATS, ()),
            "y": (_FLOATS, ()),
            "shape": (_FLOATS, ()),
            "color": (_FLOATS, (channels,)),
            "visibility": (_FLOATS, ()),
            "orientation": (_FLOATS, ()),
            "scale": (_FLOATS, ()),
        },
    )


DATA_SETS: Mapping[str, Schema] = {
    "clevr-with-masks": Schema(
        entities=(11,),
        image=(240, 320, 3),
        factors={
            "x": (_FLOATS, ()),
            "y": (_FLOATS, ()),
            "z": (_FLOATS, ()),
            "pixel_coords": (_FLOATS, (3,)),
            "rotation": (_FLOATS, ()),
            "size": (_BYTES, ()),
            "material": (_BYTES, ()),
            "shape": (_BYTES, ()),
            "color": (_BYTES, ()),
            "visibility": (_FLOATS, ()),
        },
    ),
    "multi-dsprites-binarized": _multi_dsprites(entities=4, channels=1),
    "multi-dsprites-colored-on-grayscale": _multi_dsprites(entities=6, channels=3),
    "multi-dsprites-colored-on-colored": _multi_dsprites(entities=5, channels=3),
    "tetrominoes": Schema(
        entities=(4,),
        image=(35, 35, 3),
        factors={
            "x": (_FLOATS, ()),
            "y": (_FLOATS, ()),
            "shape": (_FLOATS, ()),
            "color": (_FLOATS, (3,)),
            "visibility": (_FLOATS, ()),
        },
    ),
    # empty_room; train; six_objects, identical_color. An E of 6 would take colored-on-grayscale sprites for rooms.
    "objects-room": Schema(entities=(4, 7, 10), image=(64, 64, 3)),
}

_FEATURES = frozenset({"image", "mask"}.union(*(schema.factors for schema in DATA_SETS.values())))


def read_scenes(path: Path, name: str, skip: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
    """The scenes in a file of the data set `name`, a key of DATA_SETS, in their order and without the first `skip`.

    A scene holds "image", uint8 [H, W, C] of 0..255; "mask", uint8 [E, H, W] of 0 and 255, entity 0 the background; and
    the factors under their published names, uint8 or float32, [E] or [E, values]. The arrays are the caller's own.
    Features that the data set does not have are passed over.

    Raises ValueError for another name or a negative `skip`. Raises DataError for a file that is not there, or, after
    the scenes before it, at the first that is damaged or another data set's.
    """
    if name not in DATA_SETS:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(DATA_SETS)}")
    return _read_scenes(path, name, read_records(path, skip), skip)


def label_map(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The entity that owns each pixel, [H, W], from masks [E, H, W] of 0 and 255 of at most 256 entities.

    A pixel that nothing owns is background, entity 0. Of several owners the last counts, as later objects are drawn
    over earlier ones.
    """
    return (mask & np.arange(len(mask), dtype=np.uint8)[:, None, None]).max(axis=0)


def _read_scenes(path: Path, name: str, records: Iterator[bytes], first: int) -> Iterator[dict[str, NDArray[Any]]]:
    for number, record in enumerate(records, first):
        try:
            scene = _scene(decode_example(record, _FEATURES), name)
        except ExampleError as error:
            raise DataError(f"{path}: record {number}: {error}: check the file, and the name {name}") from error
        yield scene


def _scene(features: dict[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    schema = DATA_SETS[name]
    if problem := _mismatch(features, schema):
        others = [other for other in DATA_SETS if not _mismatch(features, DATA_SETS[other])]
        raise ExampleError(problem + "".join(f"; this looks like {other}" for other in others))

    mask = features["mask"]
    if (mask + np.uint8(1)).max() > 1:  # 255 + 1 is 0 in a byte
        raise ExampleError(f"feature 'mask' holds {mask[(mask != 0) & (mask != 255)][0]}, expected 0 and 255 alone")
    height, width, _ = schema.image
    if schema.mask_entities_last:
        mask = np.ascontiguousarray(mask.reshape(height, width, -1).transpose(2, 0, 1))
    scene = {"image": features["image"].reshape(schema.image), "mask": mask.reshape(-1, height, width)}
    for factor, (_, shape) in schema.factors.items():
        scene[factor] = features[factor].reshape(-1, *shape)
    return scene


def _mismatch(features: dict[str, NDArray[Any]], schema: Schema) -> str | None:
    """The first difference between a record and a schema."""
    height, width, _ = schema.image
    masks = [(entities, height, width) for entities in schema.entities]
    problem = _wrong(features, "image", _BYTES, [schema.image]) or _wrong(features, "mask", _BYTES, masks)
    if problem:
        return problem
    entities = features["mask"].size // (height * width)
    problems = (_wrong(features, name, kind, [(entities, *s)]) for name, (kind, s) in schema.factors.items())
    return next(filter(None, problems), None)


def _wrong(
    features: dict[str, NDArray[Any]], name: str, kind: np.dtype[Any], shapes: Sequence[tuple[int, ...]]
) -> str | None:
    """What is wrong with a feature that should have this type and the size of one of these shapes."""
    if name not in features:
        return f"feature {name!r} is missing"
    values = features[name]
    if values.dtype != kind:
        return f"feature {name!r} has the type {values.dtype}, expected {kind}"
    if values.size not in map(math.prod, shapes):
        expected = " or ".join(" x ".join(map(str, shape)) for shape in shapes)
        return f"feature {name!r} has {values.size} values, expected {expected}"
    return None
