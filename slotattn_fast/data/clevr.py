"""CLEVR with the properties of its objects, from the published folder or from TensorFlow Datasets: the same samples.

Johnson et al. (2017). Property codes are indices into `clevr_published.PROPERTIES`.
"""

import json
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slotattn_fast.data.clevr_published import HEIGHT, MAX_OBJECTS, PROPERTIES, WIDTH
from slotattn_fast.data.errors import DataError

_CODES = {name: {label: code for code, label in enumerate(labels)} for name, labels in PROPERTIES.items()}
# As prepared, and as published.
_PLACES = {"coords": "3d_coords", "pixel_coords": "pixel_coords", "rotation": "rotation"}

# Splits with properties, and what they are called in the published folder.
SPLITS = {"train": "train", "validation": "val"}
_TFDS = Path("clevr", "3.1.0")

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


class ClevrScene(NamedTuple):
    """One scene, its image still compressed."""

    number: int
    """In its split, from the image's name."""
    where: str
    """File, for messages."""
    png: bytes
    objects: dict[str, NDArray[Any]]
    """See `_objects`."""


def read_clevr(source: Path, split: str) -> Iterator[ClevrScene]:
    """The scenes of a split, "train" or "validation", in the order in which they lie on the disk.

    `source` is the folder CLEVR_v1.0 (images/, scenes/), or one that holds clevr/3.1.0 as TensorFlow Datasets prepares
    it with file_format="array_record", or that last folder itself. Every number from 0 to the count less one comes
    once; TensorFlow is not imported. Raises `DataError` naming the file, for what is missing or damaged.
    """
    if (source / "scenes").is_dir() and (source / "images").is_dir():
        return _read_published(source, split)
    for folder in (source / _TFDS, source):
        if (folder / "dataset_info.json").is_file():
            return _read_tfds(folder, split)
    raise DataError(
        f"{source}: neither CLEVR_v1.0 (with images/ and scenes/) nor a folder of TensorFlow Datasets (with {_TFDS}); "
        "`slotattn data info clevr` says where to get them"
    )


def decode(scene: ClevrScene) -> NDArray[np.uint8]:
    """The image [320, 480, 3] of 0..255; the published files' alpha, 255 everywhere, is dropped."""
    try:
        if not scene.png.endswith(_PNG_END):
            raise ValueError("its end is missing")
        with Image.open(BytesIO(scene.png), formats=["PNG"]) as image:
            if image.size != (WIDTH, HEIGHT):
                raise ValueError(f"{image.size} pixels, expected {(WIDTH, HEIGHT)}")
            image.verify()  # every chunk's checksum; decoding alone would pass over that of the pixels
        with Image.open(BytesIO(scene.png), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # damaged bytes make the decoder raise nearly anything
        raise DataError(
            f"{scene.where}: damaged image, or not one of CLEVR v1.0 ({_one_line(error)}); {_AGAIN}"
        ) from error


def _read_published(source: Path, split: str) -> Iterator[ClevrScene]:
    short = SPLITS[split]
    path = source / "scenes" / f"CLEVR_{short}_scenes.json"
    scenes = _read_scenes(path)
    _require_each_once(path, [scene.get("image_index") for scene in scenes])
    for scene in scenes:
        image = source / "images" / short / f"CLEVR_{short}_{scene['image_index']:06d}.png"
        try:
            png = image.read_bytes()
        except FileNotFoundError:
            raise DataError(f"{image}: missing, although {path.name} describes it; {_AGAIN}") from None
        yield ClevrScene(scene["image_index"], str(image), png, _from_published(scene, path))


def _read_scenes(path: Path) -> list[dict[str, Any]]:
    """The scenes of a published JSON file; their relationships, most of it, are dropped while it is parsed."""
    try:
        with path.open(encoding="utf-8") as file:
            scenes = json.load(
                file, object_hook=lambda v: {k: v[k] for k in v if k not in ("relationships", "directions")}
            )
        scenes = scenes["scenes"]
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {_AGAIN}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({_one_line(error)}); {_AGAIN}") from error
    if not isinstance(scenes, list) or not all(isinstance(scene, dict) for scene in scenes):
        raise DataError(f"{path}: no list of scenes; {_AGAIN}")
    return scenes


def _from_published(scene: dict[str, Any], path: Path) -> dict[str, NDArray[Any]]:
    where = f"{path}: scene {scene['image_index']}"
    try:
        objects = scene["objects"]
        codes = {name: [codes_of[o[name]] for o in objects] for name, codes_of in _CODES.items()}
        places = {name: [o[name] for o in objects] for name in _PLACES.values()}
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: objects without a known {error}; this is not CLEVR v1.0") from error
    return _objects(where, codes, places)


def _read_tfds(folder: Path, split: str) -> Iterator[ClevrScene]:
    try:
        import tensorflow_datasets as tfds
    except ImportError as missing:
        raise DataError(
            f"{folder}: reading it needs `pip install tensorflow-datasets array_record importlib_resources` ({missing})"
        ) from missing
    try:
        builder = tfds.builder_from_directory(folder)
        records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        names = {name: tuple(builder.info.features["objects"][name].names) for name in PROPERTIES}
        count = len(records)
    except NotImplementedError as error:
        raise DataError(
            f"{folder}: not in a format that can be read without TensorFlow; prepare it anew with "
            "`tfds.builder('clevr', file_format='array_record').download_and_prepare()`"
        ) from error
    except Exception as error:  # a damaged description makes the readers raise nearly anything
        raise DataError(f"{folder}: damaged or not CLEVR ({_one_line(error)}); prepare it anew") from error
    if names != PROPERTIES:
        raise DataError(f"{folder}: labels {names}, expected {PROPERTIES}; this is not clevr 3.1.0")

    def read(number: int) -> tuple[int, bytes, dict[str, list[int]], dict[str, Any]]:
        try:
            record = records[number]
            objects = record["objects"]
            codes = {name: [int(code) for code in objects[name]] for name in PROPERTIES}
            places = {name: objects[name] for name in _PLACES.values()}
            return _index(record["file_name"]), record["image"], codes, places
        except Exception as error:  # as above
            raise DataError(
                f"{folder}: {split}, record {number}: damaged ({_one_line(error)}); prepare it anew"
            ) from error

    # Records lie in the order of a hash, and none may be missing: look at all names first.
    _require_each_once(folder, [read(number)[0] for number in range(count)])
    for number in range(count):
        index, png, codes, places = read(number)
        where = f"{folder}: {split}, record {number}"
        yield ClevrScene(index, where, png, _objects(where, codes, places))


def _objects(where: str, codes: dict[str, list[int]], places: dict[str, list[Any]]) -> dict[str, NDArray[Any]]:
    """Properties of a scene, zeros past the last object.

    num_objects uint8 []; color, material, shape, size uint8 [10], indices into PROPERTIES; coords float32 [10, 3], in
    the units of the scene; pixel_coords float32 [10, 3], column and row in the 480x320 image and distance; rotation
    float32 [10], degrees.
    """
    counts = {len(values) for values in (*codes.values(), *places.values())}
    if len(counts) != 1 or not counts <= set(range(MAX_OBJECTS + 1)):
        raise DataError(f"{where}: {sorted(counts)} objects, expected one number up to {MAX_OBJECTS}; {_AGAIN}")
    (count,) = counts
    arrays: dict[str, NDArray[Any]] = {"num_objects": np.array(count, np.uint8)}
    for name, labels in PROPERTIES.items():
        if not all(0 <= code < len(labels) for code in codes[name]):
            raise DataError(f"{where}: {name} {codes[name]}, expected codes below {len(labels)}; {_AGAIN}")
        arrays[name] = np.zeros(MAX_OBJECTS, np.uint8)
        arrays[name][:count] = codes[name]
    for name, key in _PLACES.items():
        shape = () if name == "rotation" else (3,)
        arrays[name] = np.zeros((MAX_OBJECTS, *shape), np.float32)
        try:
            with np.errstate(over="ignore"):  # to infinity, which is refused below
                values = np.asarray(places[key], np.float32).reshape(count, *shape)
        except (ValueError, TypeError, OverflowError) as error:
            raise DataError(f"{where}: {key} not numbers of its shape ({_one_line(error)}); {_AGAIN}") from error
        if not np.isfinite(values).all():
            raise DataError(f"{where}: {key} not finite; {_AGAIN}")
        arrays[name][:count] = values
    return arrays


def _index(file_name: bytes) -> int:
    found = re.fullmatch(rb"CLEVR_\w+_(\d{6})\.png", file_name)
    return int(found[1]) if found else -1


def _require_each_once(path: Path, indices: Sequence[int | None]) -> None:
    for expected, index in enumerate(sorted(i if type(i) is int else -1 for i in indices)):
        if index != expected:
            raise DataError(
                f"{path}: {len(indices)} scenes, but not each of the images 0 to {len(indices) - 1} once; {_AGAIN}"
            )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


_AGAIN = "download it again"
