"""Making a prepared folder, from published files or from a generator: once, and whole or not at all.

All is written to DIR.partial, which is renamed to DIR at the end. After a stop, a kill or a full disk the same command
goes on from the last note in DIR.partial/progress.json, at most a few seconds of work before.
"""

import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import slotattn_fast
from slotattn_fast.atomic import remove_half_written, sync_folder, write_text
from slotattn_fast.data.catalogue import CATALOGUE, MANIFEST, partial_folder
from slotattn_fast.data.clevr import ClevrScene, decode, read_clevr
from slotattn_fast.data.clevr_published import CROP_LEFT, CROP_SIZE, CROP_TOP, MAX_OBJECTS, MIN_OBJECTS
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.generated import sampler, seed_and_first
from slotattn_fast.data.multi_object import label_map, read_scenes
from slotattn_fast.data.prepared import FORMAT, SPLITS, Prepared, open_prepared, sha256
from slotattn_fast.data.resize import resize_image, resize_labels
from slotattn_fast.data.row_file import RowFile, finish
from slotattn_fast.data.synthetic.clevr_scenes import object_counts
from slotattn_fast.lock import locked

Arrays = dict[str, NDArray[Any]]

CROP = (slice(CROP_TOP, CROP_TOP + CROP_SIZE), slice(CROP_LEFT, CROP_LEFT + CROP_SIZE))
# Most objects of the scenes that the evaluation split of CLEVR with masks is counted by.
CLEVR6 = 6
# Sky, floor and two walls come before the objects.
OBJECTS_ROOM_BACKGROUND = 4

_SECONDS_BETWEEN_NOTES = 5.0
_GENERATED_AT_ONCE, _CLEVR_AT_ONCE = 64, 8
_PROGRESS, _LOCK = "progress.json", "lock"
_TOLD = {
    "name": "data set",
    "source": "source (or that was changed or downloaded again since)",
    "asked": "number of scenes",
    "slotattn_fast": "version",
}
"""What a folder is begun with, in words."""


class _TooFewScenes(DataError):
    """The source is whole but ends too early, so there is nothing to go on with."""


class _Piece(NamedTuple):
    """Consecutive rows of a split, still to be made."""

    split: str
    row: int
    length: int
    make: Callable[[], Arrays]
    """Returns the arrays of a prepared folder, [length, ...] each. Runs in a thread."""


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
    make = partial(pieces, name, source, counts)
    return _make(out, name, {"file": about}, counts, sum(counts.values()), make)


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
    for every seed. Of clevr-with-masks they are, as in `prepare`, so many of at most 6 objects and all between. Raises
    as `prepare` does.
    """
    sample = sampler(name, max_objects)
    counts = _counts(name, train, held_out)
    if seed < 0:
        raise ValueError(f"seed: got {seed}, expected at least 0")
    about = {"generator": {"seed": seed, "max_objects": max_objects}}
    rows = counts
    # A stop waits for what is being drawn: well under a second of CLEVR too.
    at_once = _CLEVR_AT_ONCE if name.startswith("clevr") else _GENERATED_AT_ONCE
    if name == "clevr-with-masks":
        rows = {**counts, "eval": _until_clevr6(counts["eval"], MAX_OBJECTS if max_objects is None else max_objects)}
    return _make(out, name, about, counts, sum(rows.values()), partial(_generated, sample, seed, rows, at_once))


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
    out: Path,
    name: str,
    source: dict[str, Any],
    counts: dict[str, int],
    total: int,
    pieces: Callable[[int], Iterator[_Piece]],
) -> Prepared:
    """Writes the pieces that `pieces` gives, from the piece of a number on, and makes `out` of them.

    They are of `total` scenes, or of more where only the source says how many it takes for `counts`.
    """
    exists = DataError(f"{out}: exists already and is not overwritten; remove it, or choose another --out")
    if os.path.lexists(out):
        raise exists
    about = {"name": name, "slotattn_fast": slotattn_fast.__version__, "source": source, "asked": counts}
    unfinished = partial_folder(out)
    unfinished.mkdir(parents=True, exist_ok=True)
    in_use = DataError(f"{unfinished}: another process is writing to it; wait for that, or choose another --out")
    with locked(unfinished / _LOCK, in_use):
        if os.path.lexists(out):  # another process has made it since
            raise exists
        progress = _begin(unfinished, about)
        try:
            _write(unfinished, progress, total, pieces)
        except BaseException as error:
            if not progress.noted or isinstance(error, _TooFewScenes):  # nothing to go on with
                shutil.rmtree(unfinished)
            raise
        _finish(unfinished, about, progress.rows)
        unfinished.rename(out)
        sync_folder(out.parent)
        for left in (_PROGRESS, _LOCK):
            (out / left).unlink(missing_ok=True)
    return open_prepared(out)


def _write(unfinished: Path, progress: "_Progress", total: int, pieces: Callable[[int], Iterator[_Piece]]) -> None:
    """Writes all pieces that are not there yet."""
    files: dict[str, RowFile] = {}
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # the pieces are what runs in parallel
        bar = stack.enter_context(
            tqdm(
                total=total,
                initial=sum(progress.rows.values()),
                unit=" scenes",
                dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else 15,
                delay=1,  # what fails at once says why in one line
            )
        )
        noted = time.monotonic()
        for piece, arrays in _made(pieces(progress.done)):
            for name, values in arrays.items():
                key = f"{piece.split}/{name}.npy"
                if key not in files:
                    (unfinished / piece.split).mkdir(exist_ok=True)
                    files[key] = RowFile(unfinished / key, values.dtype, values.shape[1:])
                    stack.callback(files[key].close)
                files[key].write(piece.row, values)
            progress.done += 1
            progress.rows[piece.split] += piece.length
            bar.total = max(bar.total, bar.n + piece.length)
            bar.update(piece.length)
            if time.monotonic() - noted > _SECONDS_BETWEEN_NOTES:
                _note(unfinished, progress, files)
                noted = time.monotonic()
        _note(unfinished, progress, files)


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
    manifest = {"format": FORMAT, **about, "scenes": rows, "splits": splits}
    write_text(unfinished / MANIFEST, json.dumps(manifest, indent=2) + "\n")


@dataclass
class _Progress:
    """How far the writing has come, as DIR.partial/progress.json has it."""

    about: dict[str, Any]
    done: int
    """Pieces."""
    rows: dict[str, int]
    """Of each split."""
    bytes: dict[str, int]
    """Of each array's file at the last note."""
    noted: int = 0
    """Pieces at the last note."""


def _begin(unfinished: Path, about: dict[str, Any]) -> _Progress:
    """What is already there. Raises `DataError` if that is something else."""
    note = unfinished / _PROGRESS
    for name in (_PROGRESS, MANIFEST):
        remove_half_written(unfinished, name)
    try:
        values = json.loads(note.read_bytes())
        done, rows = int(values["done"]), {split: int(values["rows"][split]) for split in SPLITS}
        sizes = {name: int(size) for name, size in dict(values["bytes"]).items()}
        progress = _Progress(dict(values["about"]), done, rows, sizes, done)
    except FileNotFoundError:
        if {path.name for path in unfinished.iterdir()} - {_LOCK}:
            raise DataError(
                f"{unfinished}: has no {_PROGRESS}, so it is of something else; remove it, or choose another --out"
            ) from None
        progress = _Progress(about, 0, dict.fromkeys(SPLITS, 0), {})
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{note}: damaged ({error!r}); remove {unfinished} and start anew") from error
    if not progress.done:
        for split in SPLITS:  # what was written before the first note
            shutil.rmtree(unfinished / split, ignore_errors=True)
        progress.about = about
        _note(unfinished, progress, {})
    if other := [told for key, told in _TOLD.items() if progress.about.get(key) != about[key]]:
        raise DataError(
            f"{unfinished}: begun with another {' and '.join(other)}; go on with that, or remove {unfinished} and "
            "start anew"
        )
    for name, size in progress.bytes.items():
        path = unfinished / name
        if not path.is_file() or path.stat().st_size < size:
            raise DataError(f"{path}: missing or cut off since it was written; remove {unfinished} and start anew")
    return progress


def _note(unfinished: Path, progress: _Progress, files: dict[str, RowFile]) -> None:
    for name, file in files.items():
        file.sync()
        progress.bytes[name] = file.path.stat().st_size
    values = {key: getattr(progress, key) for key in ("about", "done", "rows", "bytes")}
    write_text(unfinished / _PROGRESS, json.dumps(values))
    progress.noted = progress.done


def _clevr(name: str, source: Path, counts: dict[str, int], start: int) -> Iterator[_Piece]:
    """The published training split, then the validation split, each scene in the row of its number."""
    number = 0
    for split, published in zip(SPLITS, ("train", "validation"), strict=True):
        found = 0
        for scene in read_clevr(source, published):
            if scene.number >= counts[split]:
                continue
            if number >= start:
                yield _Piece(split, scene.number, 1, partial(_clevr_arrays, scene))
            number += 1
            found += 1
            if found == counts[split]:
                break
        _require(source, found, counts[split], split)


def _clevr_arrays(scene: ClevrScene) -> Arrays:
    image = resize_image(decode(scene), CATALOGUE["clevr"].image[0])
    return {name: value[None] for name, value in {"images": image, **scene.objects}.items()}


def _multi_object(name: str, source: Path, counts: dict[str, int], start: int) -> Iterator[_Piece]:
    """The first scenes to train on, those after them to evaluate."""
    # The scenes of the evaluation split are read again on going on, as it takes them to know where it ends.
    trained = min(start, counts["train"])
    held_out = counted = 0
    for number, scene in enumerate(read_scenes(source, name, trained), trained):
        if "visibility" in scene:
            scene["num_objects"] = _num_objects(f"{source}: record {number}", scene["visibility"])
        if trained < counts["train"]:
            split, row = "train", trained
            trained += 1
        else:
            split, row = "eval", held_out
            held_out += 1
            counted += name != "clevr-with-masks" or int(scene["num_objects"]) <= CLEVR6
        if number >= start:
            yield _Piece(split, row, 1, partial(_multi_object_arrays, name, scene))
        if counted == counts["eval"]:
            return
    _require(source, trained, counts["train"], "train")
    _require(source, counted, counts["eval"], "eval", f" of at most {CLEVR6} objects" * (name == "clevr-with-masks"))


def _num_objects(where: str, visibility: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The number of entities besides the background, which counts as visible."""
    if not np.isin(visibility, (0, 1)).all() or visibility[0] != 1:
        raise DataError(
            f"{where}: visibility {visibility.tolist()}, expected 0 or 1 of each, the first 1; check the file"
        )
    return np.array(visibility.sum() - 1, np.uint8)


def _require(source: Path, found: int, expected: int, split: str, which: str = "") -> None:
    if found < expected:
        raise _TooFewScenes(
            f"{source}: {found} scenes{which} for {split}, expected {expected}; download it again if it should hold "
            "them, or ask for fewer with --train and --eval"
        )


def _multi_object_arrays(name: str, scene: Arrays) -> Arrays:
    image, labels = scene["image"], label_map(scene["mask"])
    if name == "clevr-with-masks":
        size = CATALOGUE[name].image[0]
        image, labels = resize_image(image[CROP], size), resize_labels(labels[CROP], size)
    if name == "objects-room":
        labels = np.maximum(labels, OBJECTS_ROOM_BACKGROUND - 1) - np.uint8(OBJECTS_ROOM_BACKGROUND - 1)
    arrays = {"images": image, "labels": labels}
    factors = {factor: value for factor, value in scene.items() if factor not in ("image", "mask")}
    return {key: value[None] for key, value in (arrays | factors).items()}


def _generated(
    sample: Callable[[int, NDArray[np.int64]], Arrays], seed: int, counts: dict[str, int], at_once: int, start: int
) -> Iterator[_Piece]:
    number = 0
    for split in SPLITS:
        of_seed, first = seed_and_first(split, seed)
        for row in range(0, counts[split], at_once):
            scenes = first + np.arange(row, min(row + at_once, counts[split]))
            if number >= start:
                yield _Piece(split, row, len(scenes), partial(_as_numpy, sample, of_seed, scenes))
            number += 1


def _until_clevr6(wanted: int, most: int) -> int:
    """How many held-out scenes of CLEVR, of 3 to `most` objects, it takes for so many of at most 6."""
    seed, first = seed_and_first("eval", 0)
    few = np.empty(0, np.bool_)
    while few.sum() < wanted:
        scenes = first + len(few) + np.arange(wanted)
        few = np.append(few, object_counts(seed, scenes, (MIN_OBJECTS, most)) <= CLEVR6)
    return int(np.searchsorted(few.cumsum(), wanted)) + 1


def _as_numpy(sample: Callable[[int, NDArray[np.int64]], Arrays], seed: int, scenes: NDArray[np.int64]) -> Arrays:
    return {key: np.asarray(values) for key, values in sample(seed, scenes).items()}
