"""Prepared folders: what training reads. Arrays that are mapped into memory, and a manifest that says what they are.

    DIR/manifest.json            name, version, source, and for each array its shape, type and SHA-256
    DIR/train/images.npy         uint8 [N, H, W, C]
    DIR/train/labels.npy         uint8 [N, H, W]: 0 background, 1, 2, ... objects' visible parts (clevr: if generated)
    DIR/train/num_objects.npy    uint8 [N] (not for objects-room)
    DIR/train/*.npy              properties, by their published names
    DIR/eval/...                 the same for the evaluation split

A folder under its own name is whole: it is made under another, and renamed at the end.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slotattn_fast.data.catalogue import CATALOGUE, MANIFEST
from slotattn_fast.data.errors import DataError

FORMAT = 1
"""Written to the manifest; raised whenever a folder of an older version could no longer be read rightly."""
SPLITS = ("train", "eval")


@dataclass(frozen=True)
class Prepared:
    """An open folder. Its arrays are mapped, not read: nothing is in memory until it is asked for."""

    path: Path
    name: str
    """Of the data set, as in the catalogue."""
    manifest: Mapping[str, Any]
    splits: Mapping[str, Mapping[str, NDArray[Any]]]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the arrays' names, shapes and checksums: equal for equal contents, wherever they come from."""
        return hashlib.sha256(json.dumps(self.manifest["splits"], sort_keys=True).encode()).hexdigest()

    @property
    def generator(self) -> Mapping[str, Any] | None:
        """What the scenes were drawn with, seed and max_objects; None of a published data set."""
        source = self.manifest.get("source")
        generator = source.get("generator") if isinstance(source, dict) else None
        return generator if isinstance(generator, dict) else None


def open_prepared(path: Path) -> Prepared:
    """Opens a folder that `slotattn data prepare` or `generate` made.

    Raises `DataError` if it is missing, of another version, or has not the files that its manifest names, each of its
    length; the contents are only compared by `check`.
    """
    manifest = _read_manifest(path)
    splits: dict[str, dict[str, NDArray[Any]]] = {}
    try:
        for split in SPLITS:
            splits[split] = {}
            for name, about in manifest["splits"][split].items():
                splits[split][name] = _map(path / split / f"{name}.npy", about, manifest["scenes"][split])
            if "images" in splits[split]:
                _require_pictures(path / split, splits[split])
        train, held_out = splits.values()
        if "images" not in train or train.keys() != held_out.keys():
            raise ValueError("no images, or not the same arrays in both splits")
        if manifest["name"] not in CATALOGUE:
            raise ValueError(f"name {manifest['name']!r}, expected one of {', '.join(CATALOGUE)}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path / MANIFEST}: damaged ({error!r}); {_REMEDY}") from error
    return Prepared(path, manifest["name"], manifest, splits)


def check(path: Path) -> Prepared:
    """Opens a folder and compares every array with its SHA-256.

    Raises `DataError` naming the first file that differs.
    """
    opened = open_prepared(path)
    for split in SPLITS:
        for name, about in opened.manifest["splits"][split].items():
            file = path / split / f"{name}.npy"
            if sha256(file) != about.get("sha256"):
                raise DataError(f"{file}: damaged (its SHA-256 is not that of the manifest); {_REMEDY}")
    return opened


def sha256(file: Path) -> str:
    """Of a file's bytes, as hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        problem = "not a folder" if path.exists() else "no such folder"
        raise DataError(f"{path}: {problem}; `slotattn data prepare` or `slotattn data generate` makes one")
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{path}: has no {MANIFEST}, so `slotattn data prepare` or `generate` did not make it, or not finish it; "
            "give that command again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path / MANIFEST}: damaged ({error}); {_REMEDY}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise DataError(f"{path}: prepared in format {found!r}, expected {FORMAT}; {_REMEDY}")
    return manifest


def _map(file: Path, about: Mapping[str, Any], scenes: int) -> NDArray[Any]:
    try:
        # Copy on write: torch takes no read-only arrays, and nothing here writes.
        array = np.lib.format.open_memmap(file, mode="c")
    except FileNotFoundError:
        raise DataError(f"{file}: missing; {_REMEDY}") from None
    except PermissionError:
        raise
    except Exception as error:  # damaged bytes make the reader raise nearly anything
        raise DataError(f"{file}: damaged ({' '.join(str(error).split())}); {_REMEDY}") from error
    if list(array.shape) != about["shape"] or array.dtype.name != about["dtype"] or array.shape[:1] != (scenes,):
        raise DataError(
            f"{file}: {array.dtype.name} {list(array.shape)}, expected {about['dtype']} {about['shape']} for {scenes} "
            f"scenes; {_REMEDY}"
        )
    return array


def _require_pictures(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raises `DataError` for images or labels that are not what every reader of them takes."""
    images, labels = arrays["images"], arrays.get("labels")
    if images.dtype != np.uint8 or images.ndim != 4:
        name, found, expected = "images", images, "[N, H, W, C]"
    elif labels is not None and (labels.dtype != np.uint8 or labels.shape != images.shape[:3]):
        name, found, expected = "labels", labels, str(list(images.shape[:3]))
    else:
        return
    raise DataError(
        f"{folder / name}.npy: {found.dtype.name} {list(found.shape)}, expected uint8 {expected}; {_REMEDY}"
    )


_REMEDY = "make it anew with `slotattn data prepare` or `generate`"
