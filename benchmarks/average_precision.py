"""Speed of the average precision (AP) on this CPU, against plain loops.

    python -m benchmarks.average_precision [--rounds 5] [--threads 2] [--images 15000] [--plain-images 500]

Predicted sets made from random true ones, a little beside them, 10 slots and 3 to 10 objects an image, at the paper's
five thresholds; from vectors of 19 numbers to AP. The loops take few images, ours the same and also as many as the
validation split of CLEVR has; in turns in one process, in any order. Medians of all rounds, with the 20th and 80th
percentile, after one that is not counted. Writes average-precision-cpu.csv and average-precision-cpu.md, which also
goes into benchmarks/README.md.
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.conditions import add_out, add_threads, at_least, command, software, write_results
from benchmarks.measure import wall_times
from benchmarks.spread import cell, columns, names, ratio_cell, ratios
from slotattn_fast.data.clevr_published import MAX_OBJECTS, MIN_OBJECTS, PROPERTIES
from slotattn_fast.data.properties import properties_of, targets_of
from slotattn_fast.metrics.average_precision import THRESHOLDS, average_precision
from slotattn_fast.train.environment import processor

Row = dict[str, Any]


def plain_average_precision(predictions: Tensor, targets: Tensor, threshold: float) -> float:
    """AP of vectors [B, K, 19] against [B, M, 19] as the text describes it, one prediction after the other.

    The layout is written out again, so that the tests have all of it from a second hand.
    """
    detections = [(vector, image) for image, vectors in enumerate(predictions.tolist()) for vector in vectors]
    detections.sort(key=lambda detection: -detection[0][18])  # stable
    objects = [
        [(vector[:3], _attributes(vector)) for vector in vectors if vector[18] == 1] for vectors in targets.tolist()
    ]
    num_objects = sum(map(len, objects))
    claimed: set[tuple[int, int]] = set()
    precision, recall = [], []
    for rank, (vector, image) in enumerate(detections, 1):
        attributes = _attributes(vector)
        nearest, best = math.inf, None
        for number, (coords, others) in enumerate(objects[image]):
            if attributes == others:
                distance = 6 * math.dist(vector[:3], coords)
                if distance < nearest:
                    nearest, best = distance, (image, number)
        if best is not None and nearest < threshold and best not in claimed:
            claimed.add(best)
        precision.append(len(claimed) / rank)
        recall.append(len(claimed) / num_objects)
    area, highest = 0.0, 0.0
    for rank in reversed(range(len(detections))):
        highest = max(highest, precision[rank])
        area += highest * (recall[rank] - (recall[rank - 1] if rank else 0))
    return area


def _attributes(vector: Any) -> tuple[int, ...]:
    parts = (vector[3:5], vector[5:7], vector[7:10], vector[10:18])
    return tuple(part.index(max(part)) for part in parts)


def draw(images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Predictions and targets, [images, 10, 19] each."""
    rng = np.random.default_rng(seed)
    scenes = {"num_objects": torch.from_numpy(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1, images))}
    scenes["coords"] = torch.from_numpy(rng.uniform(-3, 3, (images, MAX_OBJECTS, 3)))
    for name, labels in PROPERTIES.items():
        scenes[name] = torch.from_numpy(rng.integers(len(labels), size=(images, MAX_OBJECTS)))
    targets = targets_of(scenes, MAX_OBJECTS)
    noise = torch.from_numpy(rng.normal(0, 1, targets.shape)).float()
    noise[..., :3] *= 0.05
    noise[..., 3:] *= 0.25
    slots = torch.from_numpy(rng.permuted(np.tile(np.arange(MAX_OBJECTS), (images, 1)), axis=1))
    return (targets + noise).take_along_dim(slots[..., None], 1), targets


def fast(predictions: Tensor, targets: Tensor) -> list[float]:
    return average_precision(properties_of(predictions), properties_of(targets)).tolist()


def plain(predictions: Tensor, targets: Tensor) -> list[float]:
    return [plain_average_precision(predictions, targets, threshold) for threshold in THRESHOLDS]


def measure(images: int, plain_images: int, rounds: int) -> list[Row]:
    few, many = draw(plain_images), draw(images)
    np.testing.assert_allclose(fast(*few), plain(*few), rtol=0, atol=1e-12)
    calls = {"fast": partial(fast, *few), "plain": partial(plain, *few), "many": partial(fast, *many)}
    ms = wall_times(calls, rounds, warm_up=1)
    return [_row(plain_images, ms["fast"], ms["plain"]), _row(images, ms["many"])]


def _row(images: int, ms: Sequence[float], plain_ms: Sequence[float] = ()) -> Row:
    row = {"images": images, "slots": MAX_OBJECTS, "thresholds": len(THRESHOLDS), **columns("ms", ms)}
    if not plain_ms:
        return row | dict.fromkeys((*names("plain_ms"), *names("times_plain")), "")
    return row | columns("plain_ms", plain_ms) | ratios("times_plain", plain_ms, ms)


def table(rows: list[Row], path: Path) -> str:
    """Markdown: a line for each measurement."""
    first = rows[0]
    lines = [
        f"AP of {first['slots']} predictions an image within {first['thresholds']} distances, {MIN_OBJECTS} to "
        f"{MAX_OBJECTS} objects an image. {first['cpu']}, {first['threads']} threads, torch {first['torch']}, NumPy "
        f"{first['numpy']}, medians of {first['rounds']} interleaved rounds (20th to 80th percentile), "
        f"commit {first['commit']}, {first['date']}: `{first['command']}`, {path}.",
        "",
        "| images | ms | plain loops, ms | faster |",
        "|---|---|---|---|",
    ]
    for row in rows:
        loops = cell(row, "plain_ms", ".0f") if row["plain_ms_median"] else ""
        faster = ratio_cell(row, "times_plain", ".0f")
        lines.append(f"| {row['images']:,} | {cell(row, 'ms', '.1f')} | {loops} | {faster} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(2), default=5, help="timed rounds of each measurement")
    add_threads(parser)
    parser.add_argument("--images", type=at_least(1), default=15_000, help="images of the larger measurement")
    parser.add_argument("--plain-images", type=at_least(1), default=500, help="images of that with plain loops")
    add_out(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    conditions = {
        "cpu": processor(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        **software("torch", "numpy"),
    }
    found = [measure(arguments.images, arguments.plain_images, arguments.rounds)]
    write_results("average-precision-cpu", found, conditions, table, arguments.out)


if __name__ == "__main__":
    command(main)
