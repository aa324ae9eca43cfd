"""The data benchmark at toy size: what it writes is what both readers read, and every row reaches the table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import data
from benchmarks.reasons import NOT_MEASURED
from slotattn_fast.data.generated import sampler
from slotattn_fast.data.multi_object import label_map, read_scenes
from slotattn_fast.data.prepare import generate

Call = Callable[..., Any]
FEW = tuple((name, 4, images) for name, _, images in data.RECORDS)


@pytest.mark.parametrize("name", ["tetrominoes", data.SPRITES, "clevr-with-masks"])
def test_files_hold_look_alikes(name: str, tmp_path: Path) -> None:
    data.write_records(tmp_path / "file.tfrecords", name, 2, noise=False)
    drawn = sampler(name)(0, np.arange(2))
    for number, scene in enumerate(read_scenes(tmp_path / "file.tfrecords", name)):
        image, labels = np.asarray(drawn["images"][number]), np.asarray(drawn["labels"][number])
        step = 2 if name == "clevr-with-masks" else 1  # enlarged twice
        found, owners = scene["image"][::step, ::step], label_map(scene["mask"])[::step, ::step]
        height, width = np.minimum(found.shape[:2], image.shape[:2])
        np.testing.assert_array_equal(found[:height, :width], image[:height, :width])
        np.testing.assert_array_equal(owners[:height, :width], labels[:height, :width])
    assert number == 1


def test_reading_compares_both_readers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data, "RECORDS", FEW)
    ms = {"ours": [10.0, 20.0, 20.0], "tfrecord": [100.0, 400.0, 800.0]}
    read: dict[str, int] = {}

    def wall_times(calls: dict[str, Call], rounds: int, warm_up: int) -> dict[str, list[float]]:
        assert warm_up == 1
        for name, call in calls.items():
            call()
            read[name] = rounds
        return ms

    monkeypatch.setattr(data, "wall_times", wall_times)
    rows = list(data.measure_reading(tmp_path, rounds=3, one_in=2))
    assert read == {"ours": 3, "tfrecord": 3}
    assert [(row["data"], row["count"]) for row in rows] == [(name, 2) for name, _, _ in FEW]
    for row in rows:
        assert (row["a_second_median"], row["tfrecord_median"], row["times_tfrecord_median"]) == (100, 5, 20)
    data.check_same(tmp_path / "tetrominoes-plain.tfrecords", "tetrominoes", 2)


@pytest.mark.parametrize("one_in", [1, 8])
def test_what_is_drawn_and_fed_is_counted(one_in: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counted: list[int] = []

    def sampler(name: str) -> Call:
        return lambda seed, indices: counted.append(len(indices))

    def wall_times(calls: dict[str, Call], rounds: int, warm_up: int) -> dict[str, list[float]]:
        assert (rounds, warm_up) == (2, 1)
        counted.clear()
        (call,) = calls.values()
        call()
        return {name: [1000.0, 1000.0] for name in calls}

    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(data, "sampler", sampler)
    monkeypatch.setattr(data, "wall_times", wall_times)
    monkeypatch.setattr(data, "to_model", lambda images: counted.append(len(images)))
    for row in data.measure_drawing(2, 2, one_in):
        assert row["count"] == row["a_second_median"] == sum(counted)
    assert row["count"] == 2 * 32 * 64 // one_in
    monkeypatch.setattr(data, "generate", lambda name, path, **_: generate(name, path, train=64, held_out=1))
    *_, row = data.measure_feeding(tmp_path, 2, 3, one_in)
    assert row["count"] == row["a_second_median"] == sum(counted) == 300 // one_in * 64
    assert threads[:2] == [1, 3]  # drawing has threads of its own, as has `generate`


@pytest.mark.parametrize(
    ("feature", "error", "told"),
    [
        ("image", AssertionError, "tetrominoes-plain.tfrecords: image"),
        ("mask", AssertionError, "tetrominoes-plain.tfrecords: mask"),
        ("count", ValueError, r"zip\(\) argument 2 is shorter"),
    ],
)
def test_a_record_that_is_read_otherwise_is_seen(
    feature: str, error: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "tetrominoes-plain.tfrecords"
    data.write_records(path, "tetrominoes", 3, noise=False)
    data.check_same(path, "tetrominoes", 3)
    peers = [dict(scene) for scene in data._peers_scenes(path)]
    if feature == "count":
        peers.pop()
    else:
        peers[1][feature] = peers[1][feature].view(np.uint8).copy()
        peers[1][feature][0] ^= 1
    monkeypatch.setattr(data, "_peers_scenes", lambda path: peers)
    with pytest.raises(error, match=told):
        data.check_same(path, "tetrominoes", 3)
    monkeypatch.setattr(data, "RECORDS", (("tetrominoes", 3, "plain"),))
    with pytest.raises(error, match=told):
        next(data.measure_reading(tmp_path, rounds=2, one_in=1))


def test_every_row_is_in_the_table() -> None:
    conditions = dict.fromkeys(("cpu", "threads", "torch", "numpy", "tfrecord", "rounds", "commit", "date"), "x")
    conditions["command"] = "python -m benchmarks.data --quick"
    rows = [
        data._row("read", "tetrominoes", "plain", 900, "records", [500.0, 1000.0], [6000.0, 16_000.0]),
        data._row("draw", "clevr", "", 64, "scenes", [2000.0, 2000.0]),
        data._row("read", "clevr", "", 8, "records", why="no file"),
    ]
    lines = data.table([{**row, **conditions} for row in rows], Path("folder/data-cpu.csv")).splitlines()
    assert lines[0].endswith(", x: `python -m benchmarks.data --quick`, folder/data-cpu.csv.")
    assert lines[-3:] == [
        "| read | tetrominoes | plain | 900 | 1,350 records (1,080 to 1,620) | 103 (75 to 131) | **14x** (13 to 15) |",
        "| draw | clevr |  | 64 | 32 scenes (32 to 32) |  |  |",
        "| read | clevr |  | 8 | no file |  |  |",
    ]


def test_reading_without_the_peer_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    rows = list(data.measure_reading(tmp_path, rounds=1, one_in=1))
    assert [row["data"] for row in rows] == [name for name, _, _ in data.RECORDS]
    assert {row[NOT_MEASURED] for row in rows} == {"the package tfrecord, which writes the files, is not installed"}
