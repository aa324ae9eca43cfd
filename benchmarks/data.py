"""Speed of the data on this CPU: reading published files, drawing look-alikes, feeding the training.

    python -m benchmarks.data [--quick] [--rounds 3] [--threads 2] [--out benchmarks/results]

Reading: records a second of our reader and of the PyPI package tfrecord (images and masks as arrays of numbers, all
factors decoded), on files that the package's own writer wrote, in turns in one process, one thread. What is in them are
look-alikes, those of CLEVR enlarged to the published size, and once more with noise of two levels of 255, as rendered
images have it. Before they are timed, every image and mask of the one is compared with the other's. Drawing: scenes a
second in batches of 64 (with --quick of 8), as `slotattn data generate` draws them. Feeding: images a second at 64x64
from a prepared folder that is in the page cache, in batches of 64, as uint8 and as the float32 that a model takes.
Medians of all rounds, with the 20th and 80th percentile, after one that is not counted. Writes data-cpu.csv and
data-cpu.md, which also goes into benchmarks/README.md.
"""

import argparse
import gzip
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.conditions import add_quick_out, add_threads, at_least, chosen_out, command, software, write_results
from benchmarks.measure import wall_times
from benchmarks.reasons import NOT_MEASURED
from benchmarks.spread import cell, columns, names, ratio_cell, ratios
from slotattn_fast.data.catalogue import GENERATED
from slotattn_fast.data.feed import feed
from slotattn_fast.data.generated import sampler
from slotattn_fast.data.multi_object import DATA_SETS, read_scenes
from slotattn_fast.data.prepare import generate
from slotattn_fast.data.split import open_split
from slotattn_fast.train.environment import processor
from slotattn_fast.train.run_data import to_model

Row = dict[str, Any]

BATCH = 64
QUICK = 8  # of what is read, drawn and fed, --quick takes one in as many
SPRITES = "multi-dsprites-colored-on-grayscale"
RECORDS = (
    ("clevr-with-masks", 8, "plain"),
    ("clevr-with-masks", 8, "with noise"),
    (SPRITES, 300, "plain"),
    ("tetrominoes", 1000, "plain"),
)


def write_records(path: Path, name: str, count: int, noise: bool) -> None:
    """A file of a published format with look-alikes in it."""
    from tfrecord.writer import TFRecordWriter

    schema, rng = DATA_SETS[name], np.random.default_rng(0)
    (height, width, _), entities = schema.image, schema.entities[0]
    scenes = sampler(name)(0, np.arange(count))
    plain = path.with_suffix(".plain")
    writer = TFRecordWriter(str(plain))
    for image, labels in zip(np.asarray(scenes["images"]), np.asarray(scenes["labels"]), strict=True):
        if image.shape[:2] != (height, width):  # 128x128 twice as large, and repeated on the right
            image, labels = (
                np.pad(a.repeat(2, 0).repeat(2, 1)[:height], _wider(a, width), "wrap") for a in (image, labels)
            )
        if noise:
            image = np.clip(image + rng.normal(0, 2, image.shape).round(), 0, 255).astype(np.uint8)
        mask = np.where(labels == np.arange(entities)[:, None, None], 255, 0).astype(np.uint8)
        features = {"image": image, "mask": np.moveaxis(mask, 0, 2) if schema.mask_entities_last else mask}
        for factor, (kind, shape) in schema.factors.items():
            features[factor] = np.ones((entities, *shape), kind)
        writer.write({key: _values(value) for key, value in features.items()})
    writer.close()
    with gzip.open(path, "wb") as file:
        file.write(plain.read_bytes())
    plain.unlink()


def _wider(array: np.ndarray, width: int) -> list[tuple[int, int]]:
    return [(0, 0), (0, width - 2 * array.shape[1]), *[(0, 0)] * (array.ndim - 2)]


def _values(array: np.ndarray) -> tuple[list[Any], str]:
    if array.dtype == np.uint8:
        return [bytes([value]) for value in array.ravel().tolist()], "byte"
    return array.ravel().tolist(), "float"


def measure_reading(folder: Path, rounds: int, one_in: int) -> Iterator[Row]:
    for name, count, form in RECORDS:
        count //= one_in
        if find_spec("tfrecord") is None:
            why = "the package tfrecord, which writes the files, is not installed"
            yield _row("read", name, form, count, "records", why=why)
            continue
        path = folder / f"{name}-{form}.tfrecords"
        write_records(path, name, count, form == "with noise")
        check_same(path, name, count)
        readers = {"ours": partial(read_scenes, path, name), "tfrecord": partial(_peers_scenes, path)}
        calls = {who: partial(_read_all, reader) for who, reader in readers.items()}
        ms = wall_times(calls, rounds, warm_up=1)
        yield _row("read", name, form, count, "records", ms["ours"], ms["tfrecord"])


def check_same(path: Path, name: str, count: int) -> None:
    """Raises AssertionError where the readers differ in an image, a mask or the number of records."""
    read = 0
    for own, peers in zip(read_scenes(path, name), _peers_scenes(path), strict=True):
        if DATA_SETS[name].mask_entities_last:  # in the file; ours has them first
            own["mask"] = np.moveaxis(own["mask"], 0, 2)
        for feature in ("image", "mask"):
            np.testing.assert_array_equal(own[feature].ravel(), peers[feature].view(np.uint8), f"{path}: {feature}")
        read += 1
    assert read == count, f"{path}: {read} records, expected {count}"


def _read_all(reader: Callable[[], Iterable[Any]]) -> None:
    for _ in reader():
        pass


def _peers_scenes(path: Path) -> Iterable[dict[str, np.ndarray]]:
    from tfrecord.reader import example_loader

    return example_loader(str(path), None, None, compression_type="gzip")


def measure_drawing(rounds: int, threads: int, one_in: int) -> Iterator[Row]:
    torch.set_num_threads(1)
    size = BATCH // one_in
    with ThreadPoolExecutor(threads) as pool:
        for name in GENERATED:
            sample = sampler(name)
            batches = threads * (1 if name.startswith("clevr") else 32)

            def draw(sample: Callable[..., Any] = sample, batches: int = batches) -> None:
                list(pool.map(lambda i: sample(0, np.arange(i * size, (i + 1) * size)), range(batches)))

            yield _row("draw", name, "", batches * size, "scenes", _ms(draw, rounds))


def measure_feeding(folder: Path, rounds: int, threads: int, one_in: int) -> Iterator[Row]:
    torch.set_num_threads(threads)
    path = folder / "sprites"
    generate(SPRITES, path, train=20_000 // one_in, held_out=1)
    split = open_split(str(path), "train", ["images"])
    steps = 300 // one_in
    for form, convert in (("uint8", lambda images: images), ("float32", to_model)):
        with closing(feed(split, seed=0, batch_size=BATCH, start=0, device=torch.device("cpu"))) as batches:

            def take(batches: Any = batches, convert: Callable[..., Any] = convert) -> None:
                for batch in itertools.islice(batches, steps):
                    convert(batch["images"])

            yield _row("feed", SPRITES, form, steps * BATCH, "images", _ms(take, rounds))


def _ms(call: Callable[[], None], rounds: int) -> list[float]:
    return wall_times({"call": call}, rounds, warm_up=1)["call"]


def _row(
    part: str,
    data: str,
    form: str,
    count: int,
    unit: str,
    ms: Sequence[float] = (),
    peers_ms: Sequence[float] = (),
    why: str = "",
) -> Row:
    """What was counted in every round, and how long it took."""
    row: Row = {"part": part, "data": data, "form": form, "count": count, "unit": unit}
    row |= dict.fromkeys((*names("a_second"), *names("tfrecord"), *names("times_tfrecord")), "")
    for name, values in (("a_second", ms), ("tfrecord", peers_ms)):
        if values:
            row |= columns(name, [1e3 * count / each for each in values], 1)
    if peers_ms:
        row |= ratios("times_tfrecord", peers_ms, ms)
    row[NOT_MEASURED] = why
    peers = f", tfrecord {_peers(row)}" if peers_ms else ""
    print(f"{part:5} {data:36} {form:11}{_speed(row)}{peers}", flush=True)
    return row


def _speed(row: Row) -> str:
    return row[NOT_MEASURED] or cell(row, "a_second", ",.0f", row["unit"])


def _peers(row: Row) -> str:
    return cell(row, "tfrecord", ",.0f") if row["tfrecord_median"] else ""


def table(rows: list[Row], path: Path) -> str:
    """Markdown: a line for each measurement."""
    first = rows[0]
    lines = [
        f"{first['cpu']}, {first['threads']} threads (reading: 1), torch {first['torch']}, NumPy {first['numpy']}, "
        f"tfrecord {first['tfrecord']}, medians of {first['rounds']} rounds (20th to 80th percentile), "
        f"commit {first['commit']}, {first['date']}: `{first['command']}`, {path}.",
        "",
        "| what | data | | in a round | a second | PyPI tfrecord, a second | faster |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['part']} | {row['data']} | {row['form']} | {row['count']:,} | {_speed(row)} | {_peers(row)} "
            f"| {ratio_cell(row, 'times_tfrecord', '.0f')} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of the scenes")
    parser.add_argument("--rounds", type=at_least(2), help="timed rounds (default 3; with --quick 2)")
    add_threads(parser, "threads of drawing and feeding")
    add_quick_out(parser)
    arguments = parser.parse_args()
    out = chosen_out(arguments)
    rounds = arguments.rounds or (2 if arguments.quick else 3)
    one_in = QUICK if arguments.quick else 1
    conditions = {
        "cpu": processor(),
        "threads": arguments.threads,
        "rounds": rounds,
        **software("torch", "numpy", "tfrecord"),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = itertools.chain(
            measure_reading(folder, rounds, one_in),
            measure_drawing(rounds, arguments.threads, one_in),
            measure_feeding(folder, rounds, arguments.threads, one_in),
        )
        write_results("data-cpu", itertools.accumulate([row] for row in rows), conditions, table, out)


if __name__ == "__main__":
    command(main)
