"""Making a prepared folder, from published files or from a generator: once, and whole or not at all.

All is written to DIR.partial, which is renamed to DIR at the end. After a stop, a kill or a full disk the same command
goes on from the last note in DIR.partial/progress.json, at most a few seconds of work before.
"""

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import slotattn_fast
from slotattn_fast.atomic import atomic_write, sync_folder
from slotattn_fast.data.catalogue import CATALOGUE
from slotattn_fast.data.clevr import ClevrScene, decode, read_clevr
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.generated import FIRST_HELD_OUT, HELD_OUT_SEED, sampler
from slotattn_fast.data.multi_object import label_map, read_scenes
from slotattn_fast.data.prepared import FORMAT, MANIFEST, SPLITS, Prepared, open_prepared, sha256
from slotattn_fast.data.resize import resize_image, resize_labels
from slotattn_fast.data.row_file import RowFile, finish

Arrays = dict[str, NDArray[Any]]

# The paper's crop of the 320x240 images of CLEVR with masks, and the objects that its evaluation scenes are counted by.
CROP = (slice(29, 221), slice(64, 256))
CLEVR6 = 6
# Sky, floor and two walls come before the objects.
OBJECTS_ROOM_BACKGROUND = 4

_SECONDS_BETWEEN_NOTES = 5.0
_GENERATED_AT_ONCE = 64
_PROGRESS = "progress.json"


class _Piece(NamedTuple):
    """Consecutive rows of a split, still to be made."""

    split: str
    row: int
    length: int
    make: Callable[[], Arrays]
    """Returns the arrays of a prepared folder, [count, ...] each. Runs in a thread."""


def prepare(name: str, source: Path, out: Path, *, train: int | None = None, held_out: int | None = None) -> Prepared:
    """Converts published files to the folder `out`; `train` and `held_out` replace the paper's numbers of scenes.

    Raises ValueError for an unknown name or a number below 1; OSError for a full disk; `DataError` for a source that is
    missing, damaged, another data set's or too short, for an `out` that exists, and for a DIR.partial begun otherwise.
    """
    if name not in CATALOGUE:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(CATALOGUE)}")
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; `slotattn data info {name}` says where to get it")
    counts = _counts(name, train, held_out)
    stat = source.stat()
    about = {
        "path": str(source.resolve()),
        "bytes": stat.st_size if source.is_file() else None,
        "changed": stat.st_mtime,
    }
    pieces = _clevr if name == "clevr" else _multi_object
    return _make(out, name, {"file": about}, counts, lambda start: pieces(name, source, counts, start))


def generate(
    name: str,
    out: Path,
    *,
    seed: int = 0,
    train: int | None = None,
    held_out: int | None = None,
    max_objects: int | None = None,
) -> Prepared:
    """Draws the look-alike of a data set into the folder `out`: the scenes that training on `name` itself would see.

    The training split is the first scenes of `seed`, the evaluation split the first held-out scenes, which are the same
    for every seed. Raises as `prepare` does.
    """
    counts = _counts(name, train, held_out)
    sample = sampler(name, max_objects)
    about = {"generator": {"seed": seed, "max_objects": max_objects}}
    return _make(out, name, about, counts, lambda start: _generated(sample, seed, counts, start))


def _counts(name: str, train: int | None, held_out: int | None) -> dict[str, int]:
    data_set = CATALOGUE[name]
    counts = {
        "train": data_set.train if train is None else train,
        "eval": data_set.eval if held_out is None else held_out,
    }
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f"{split}: got {count}, expected at least 1")
    return counts


def _make(
    out: Path, name: str, source: dict[str, Any], counts: dict[str, int], pieces: Callable[[int], Iterator[_Piece]]
) -> Prepared:
    """Writes the pieces that `pieces` gives, from the piece of a number on, and makes `out` of them."""
    if out.exists():
        raise DataError(f"{out}: exists already and is not overwritten; remove it, or choose another --out")
    about = {"name": name, "slotattn_fast": slotattn_fast.__version__, "source": source, "asked": counts}
    unfinished = out.with_name(f"{out.name}.partial")
    unfinished.mkdir(parents=True, exist_ok=True)
    with _locked(unfinished):
        rows = _write(unfinished, about, counts, pieces)
        if any(rows[split] < counts[split] for split in SPLITS):
            shutil.rmtree(unfinished)
            raise DataError(
                f"{source['file']['path']}: {sum(rows.values())} scenes, expected {sum(counts.values())} "
                f"({counts['train']} to train on, {counts['eval']} to evaluate); download it again if it should hold "
                "them, or ask for fewer with --train and --eval"
            )
        _finish(unfinished, about, rows)
        unfinished.rename(out)
        sync_folder(out.parent)
        (out / _PROGRESS).unlink()
    return open_prepared(out)


def _write(
    unfinished: Path, about: dict[str, Any], counts: dict[str, int], pieces: Callable[[int], Iterator[_Piece]]
) -> dict[str, int]:
    """Writes all pieces that are not there yet, and returns the number of rows of each split."""
    done, rows = _read_progress(unfinished, about)
    files: dict[tuple[str, str], RowFile] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the pieces are what runs in parallel
    noted = time.monotonic()
    try:
        with tqdm(total=sum(counts.values()), initial=sum(rows.values()), unit="scene", dynamic_ncols=True) as bar:
            for piece, arrays in _made(pieces(done)):
                for name, values in arrays.items():
                    if (piece.split, name) not in files:
                        folder = unfinished / piece.split
                        folder.mkdir(exist_ok=True)
                        files[piece.split, name] = RowFile(folder / f"{name}.npy", values.dtype, values.shape[1:])
                    files[piece.split, name].write(piece.row, values)
                done += 1
                rows[piece.split] += piece.length
                bar.update(piece.length)
                if time.monotonic() - noted > _SECONDS_BETWEEN_NOTES:
                    _note_progress(unfinished, about, files, done, rows)
                    noted = time.monotonic()
        _note_progress(unfinished, about, files, done, rows)
    finally:
        torch.set_num_threads(threads)
        for file in files.values():
            file.close()
    return rows


def _made(pieces: Iterator[_Piece]) -> Iterator[tuple[_Piece, Arrays]]:
    """The pieces in their order, each with its arrays, which are made a few ahead in threads."""
    workers = os.cpu_count() or 1
    ahead: deque[tuple[_Piece, Future[Arrays]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for piece in pieces:
            ahead.append((piece, pool.submit(piece.make)))
            if len(ahead) > 2 * workers:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _finish(unfinished: Path, about: dict[str, Any], rows: dict[str, int]) -> None:
    """Headers, checksums and, last, the manifest."""
    splits: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        splits[split] = {}
        for path in sorted((unfinished / split).glob("*.npy")):
            finish(path, rows[split])
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            splits[split][path.stem] = {
                "shape": list(array.shape),
                "dtype": array.dtype.name,
                "sha256": sha256(path),
            }
        sync_folder(unfinished / split)
    with atomic_write(unfinished / MANIFEST) as file:
        file.write(
            (json.dumps({"format": FORMAT, **about, "scenes": rows, "splits": splits}, indent=2) + "\n").encode()
        )


def _note_progress(
    unfinished: Path, about: dict[str, Any], files: dict[tuple[str, str], RowFile], done: int, rows: dict[str, int]
) -> None:
    for file in files.values():
        file.sync()
    with atomic_write(unfinished / _PROGRESS) as note:
        note.write(json.dumps({"about": about, "done": done, "rows": rows}).encode())


def _read_progress(unfinished: Path, about: dict[str, Any]) -> tuple[int, dict[str, int]]:
    """Pieces and rows that are already there."""
    try:
        noted = json.loads((unfinished / _PROGRESS).read_bytes())
        if noted["about"] == about:
            return noted["done"], noted["rows"]
    except FileNotFoundError:
        return 0, dict.fromkeys(SPLITS, 0)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{unfinished / _PROGRESS}: damaged ({error}); remove {unfinished} and start anew") from error
    raise DataError(f"{unfinished}: begun with another source, numbers or version; go on with those, or remove it")


@contextmanager
def _locked(unfinished: Path) -> Iterator[None]:
    """Keeps a second process from writing to the same folder."""
    if os.name != "posix":
        yield
        return
    import fcntl

    folder = os.open(unfinished, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DataError(
            f"{unfinished}: another process is writing to it; wait for that, or choose another --out"
        ) from None
    finally:
        os.close(folder)


def _clevr(name: str, source: Path, counts: dict[str, int], start: int) -> Iterator[_Piece]:
    """The published training split, then the validation split, each scene in the row of its number."""
    number = 0
    for split, published in zip(SPLITS, ("train", "validation"), strict=True):
        for scene in read_clevr(source, published):
            if scene.number >= counts[split]:
                continue
            if number >= start:
                yield _Piece(split, scene.number, 1, partial(_clevr_arrays, scene))
            number += 1


def _clevr_arrays(scene: ClevrScene) -> Arrays:
    image = resize_image(decode(scene), CATALOGUE["clevr"].image[0])
    return {name: value[None] for name, value in {"images": image, **scene.objects}.items()}


def _multi_object(name: str, source: Path, counts: dict[str, int], start: int) -> Iterator[_Piece]:
    """The first scenes to train on, those after them to evaluate."""
    # The scenes of the evaluation split are read again on going on, as it takes them to know where it ends.
    skipped = min(start, counts["train"])
    held_out = counted = 0
    for number, scene in enumerate(read_scenes(source, name, skipped), skipped):
        split, row = "train", number
        if number >= counts["train"]:
            if counted == counts["eval"]:
                return
            split, row = "eval", held_out
            held_out += 1
            counted += name != "clevr-with-masks" or round(float(scene["visibility"].sum())) <= 1 + CLEVR6
        if number >= start:
            yield _Piece(split, row, 1, partial(_multi_object_arrays, name, scene))


def _multi_object_arrays(name: str, scene: Arrays) -> Arrays:
    image, labels = scene["image"], label_map(scene["mask"])
    if name == "clevr-with-masks":
        size = CATALOGUE[name].image[0]
        image, labels = resize_image(image[CROP], size), resize_labels(labels[CROP], size)
    if name == "objects-room":
        labels = np.maximum(labels, OBJECTS_ROOM_BACKGROUND - 1) - np.uint8(OBJECTS_ROOM_BACKGROUND - 1)
    arrays = {"images": image, "labels": labels}
    if "visibility" in scene:
        # The background counts as visible.
        arrays["num_objects"] = np.array(round(float(scene["visibility"].sum())) - 1, np.uint8)
    factors = {factor: value for factor, value in scene.items() if factor not in ("image", "mask")}
    return {key: value[None] for key, value in (arrays | factors).items()}


def _generated(
    sample: Callable[[int, NDArray[np.int64]], Arrays], seed: int, counts: dict[str, int], start: int
) -> Iterator[_Piece]:
    number = 0
    for split, (of_seed, first) in zip(SPLITS, ((seed, 0), (HELD_OUT_SEED, FIRST_HELD_OUT)), strict=True):
        for row in range(0, counts[split], _GENERATED_AT_ONCE):
            scenes = first + np.arange(row, min(row + _GENERATED_AT_ONCE, counts[split]))
            if number >= start:
                yield _Piece(split, row, len(scenes), partial(_as_numpy, sample, of_seed, scenes))
            number += 1


def _as_numpy(sample: Callable[[int, NDArray[np.int64]], Arrays], seed: int, scenes: NDArray[np.int64]) -> Arrays:
    return {key: np.asarray(values) for key, values in sample(seed, scenes).items()}
