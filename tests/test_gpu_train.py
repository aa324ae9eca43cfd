"""The GPU stage that trains in pieces, at toy size: cut and gone on with, from one file to the next."""

import json
import os
import signal
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from benchmarks import gpu, gpu_train
from slotattn_fast.train import checkpoint
from slotattn_fast.train import property as property_task
from slotattn_fast.train.config import PRESETS
from slotattn_fast.train.discovery import Discovery
from slotattn_fast.train.errors import RunError
from slotattn_fast.train.property import PropertyTask

STEPS = 12


def train(out: Path, start: Path | None = None, preset: str = "tetrominoes", **changed: float) -> bool:
    given = {"seed": 3, "steps": STEPS, "minutes": 5.0, **changed}
    return gpu.train(preset, **given, out=out, start=start, toy=True)


def content(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as file:
        return {member.name: file.extractfile(member).read() for member in file}


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """SIGTERM comes in that step, as it does when the minutes are over."""
    whole = {kind: kind.batches for kind in (Discovery, PropertyTask)}

    def at(number: int) -> None:
        def until(self: Discovery | PropertyTask, start: int, *rest: object) -> object:
            for step, batch in enumerate(whole[type(self)](self, start, *rest), start):
                if step == number:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        for kind in whole:
            monkeypatch.setattr(kind, "batches", until)

    return at


def test_pieces_end_with_the_weights_of_a_run_that_was_not_cut(
    tmp_path: Path, cut: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "uncut")
    archive = tmp_path / "cut" / "train-tetrominoes-3.tar"
    cut(4)
    assert not train(tmp_path / "cut")
    assert sorted(content(archive)) == [
        "checkpoints/step-00000005.pt",
        "conditions.json",
        "config.json",
        "env.json",
        "metrics.csv",
    ]
    assert "step 5 of 12" in capsys.readouterr().out
    cut(8)
    assert not train(tmp_path / "cut", archive, steps=None)
    assert [name for name in content(archive) if name.startswith("checkpoints")] == ["checkpoints/step-00000009.pt"]
    cut(-1)
    assert train(tmp_path / "elsewhere", archive)
    (path,) = (tmp_path / "elsewhere").iterdir()
    found, expected = content(path), content(tmp_path / "uncut" / path.name)
    weights, others = (safetensors.torch.load(x["model.safetensors"]) for x in (found, expected))
    assert all(torch.equal(weights[name], others[name]) for name in others)
    assert weights.keys() == others.keys()
    assert found.keys() == expected.keys()
    assert {"eval.json", "slots.png", "iterations.png", "images/step-00000012.png"} < found.keys()
    assert not any(name.startswith(("checkpoints", "tb")) for name in found)
    pieces = json.loads(found["conditions.json"])
    assert [(piece["from_step"], piece["to_step"]) for piece in pieces] == [(0, 5), (5, 9), (9, 12)]
    assert all(piece["images_per_second"] > 0 and piece["gpu"].startswith("none") for piece in pieces)
    assert train(tmp_path / "nothing", path)
    assert not (tmp_path / "nothing").exists()


def test_property_prediction_is_trained_in_pieces_too(
    tmp_path: Path, cut: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(property_task, "GENERATED_SCENES", 4)
    archive = tmp_path / "train-clevr10-3.tar"
    cut(1)
    assert not train(tmp_path, preset="clevr10", steps=3)
    assert json.loads(content(archive)["config.json"])["task"] == "property"
    cut(-1)
    assert train(tmp_path, archive, "clevr10", steps=3)
    found = content(archive)
    assert {"model.safetensors", "slots.png", "images/step-00000003.png"} < found.keys()
    assert "ap" in json.loads(found["eval.json"])
    assert [(piece["from_step"], piece["to_step"]) for piece in json.loads(found["conditions.json"])] == [
        (0, 2),
        (2, 3),
    ]


def test_what_was_packed_while_a_piece_ran_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: Callable[[int], None]
) -> None:
    """The archive of the moment that a kill leaves, here of the sixth step, trains on to the same end."""
    assert train(tmp_path / "uncut")
    archive, kept = tmp_path / "cut" / "train-tetrominoes-3.tar", tmp_path / "kept.tar"
    monkeypatch.setattr(gpu_train, "KEEP_EVERY", 0.01)
    preset = gpu_train.configuration
    monkeypatch.setattr(gpu_train, "configuration", lambda *given: replace(preset(*given), checkpoint_every=2))
    whole = Discovery.batches

    def slow(self: Discovery, start: int, *rest: object) -> object:
        for step, batch in enumerate(whole(self, start, *rest), start):
            if step == 6:
                until = time.monotonic() + 60
                while not (archive.exists() and "checkpoints/step-00000006.pt" in content(archive)):
                    assert time.monotonic() < until
                    time.sleep(0.01)
                kept.write_bytes(archive.read_bytes())
            yield batch

    with monkeypatch.context() as slowly:
        slowly.setattr(Discovery, "batches", slow)
        assert train(tmp_path / "cut")
    (piece,) = json.loads(content(kept)["conditions.json"])
    assert (piece["from_step"], piece["to_step"]) == (0, 6)
    assert train(tmp_path / "on", kept)
    weights, others = (
        safetensors.torch.load(content(tmp_path / folder / archive.name)["model.safetensors"])
        for folder in ("on", "uncut")
    )
    assert all(torch.equal(weights[name], others[name]) for name in others)
    pieces = json.loads(content(tmp_path / "on" / archive.name)["conditions.json"])
    assert [(piece["from_step"], piece["to_step"]) for piece in pieces] == [(0, 6), (6, 12)]


def test_a_file_that_vanishes_while_it_is_packed_is_left_to_the_next_time() -> None:
    """And what is being packed is waited for at the end."""
    begun, ended = [], []

    def keep() -> None:
        begun.append(1)
        if len(begun) <= 3:
            raise (FileNotFoundError, ValueError, TypeError)[len(begun) - 1]
        time.sleep(0.05)
        ended.append(1)

    with gpu_train.repeated(keep, 0.001, 0.001):
        while len(begun) < 4:
            time.sleep(0.001)
    assert len(ended) == len(begun) - 3 >= 1


def test_a_run_ends_when_the_minutes_are_over(tmp_path: Path) -> None:
    assert not train(tmp_path, steps=500, minutes=0)
    names = list(content(tmp_path / "train-tetrominoes-3.tar"))
    assert any(name.startswith("checkpoints/step-") for name in names)


def test_signals_beside_the_loop_do_nothing() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with gpu_train.terminated_after(0):
        time.sleep(3 * gpu_train.AGAIN)
    assert signal.getsignal(signal.SIGTERM) == handler


def test_an_archive_of_another_run_is_refused(tmp_path: Path, cut: Callable[[int], None]) -> None:
    cut(1)
    train(tmp_path)
    archive = tmp_path / "train-tetrominoes-3.tar"
    for change, message in (({"seed": 4}, "'seed': 3"), ({"steps": 13}, "'steps': 12")):
        with pytest.raises(SystemExit, match=message):
            train(tmp_path, archive, **change)


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no archive" * 100)
    for name in ("x.tar", "missing.tar"):
        with pytest.raises(SystemExit, match="train: "):
            train(tmp_path, tmp_path / name)


def test_what_ended_by_an_error_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finite = checkpoint.save

    def diverges(*given: object) -> None:
        finite(*given)
        raise RunError("the loss is nan")

    monkeypatch.setattr(checkpoint, "save", diverges)
    with pytest.raises(SystemExit, match="train: the loss is nan"):
        train(tmp_path)
    assert "checkpoints/step-00000012.pt" in content(tmp_path / "train-tetrominoes-3.tar")


def test_too_large_an_archive_is_told(
    tmp_path: Path, cut: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_train, "LIMIT", 1000)
    cut(1)
    with pytest.raises(SystemExit, match=r"train-tetrominoes-3.tar: 0.1 MiB, expected at most"):
        train(tmp_path)


@pytest.mark.parametrize("preset", gpu.PRESETS)
def test_all_that_decides_the_result_is_the_papers(preset: str) -> None:
    task = "property" if preset == "clevr10" else "discovery"
    config, paper = gpu_train.configuration(preset, 7, None, toy=False), PRESETS[task][preset]
    changed = {name for name, value in vars(config).items() if value != vars(paper)[name]}
    assert changed == {"seed", "precision", "device", "cuda_graph", "image_every", "scenes"}
    assert (config.steps, config.batch_size) == ((150_000, 512) if task == "property" else (500_000, 64))
