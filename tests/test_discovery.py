"""Which scenes the discovery task trains on, and which it is measured on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

from slotattn_fast.data.synthetic.tetrominoes import sample_tetrominoes
from slotattn_fast.models.discovery import DiscoveryConfig, ObjectDiscovery
from slotattn_fast.train import discovery
from slotattn_fast.train.config import PRESETS

MODEL = DiscoveryConfig(encoder_channels=4, slot_dim=4, hidden_dim=4, decoder_channels=4)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Every seed and its scenes that are asked for in a test, in order."""
    calls: list[tuple[int, list[int]]] = []

    def sample(seed: int, scenes: ArrayLike) -> dict[str, NDArray[np.uint8]]:
        calls.append((seed, np.asarray(scenes).tolist()))
        return sample_tetrominoes(seed, scenes)

    monkeypatch.setattr(discovery, "sample_tetrominoes", sample)
    return calls


def test_steps_train_on_the_scenes_of_the_seed_one_after_the_other(drawn: list[tuple[int, list[int]]]) -> None:
    task = discovery.Discovery(replace(PRESETS["quick"], batch_size=3, seed=5))
    images = [task.batch(step) for step in (0, 1, 7)]
    assert drawn == [(5, [0, 1, 2]), (5, [3, 4, 5]), (5, [21, 22, 23])]
    np.testing.assert_array_equal(images[2].numpy(), sample_tetrominoes(5, [21, 22, 23])["images"])


def test_held_out_scenes_are_320_that_no_seed_trains_on(drawn: list[tuple[int, list[int]]]) -> None:
    model = ObjectDiscovery(MODEL)
    assert discovery.measure(model)["scenes"] == 320
    assert {seed for seed, _ in drawn} == {0}
    assert [scene for _, scenes in drawn for scene in scenes] == list(range(2**40, 2**40 + 320))


def test_the_picture_shows_the_first_held_out_scenes(
    drawn: list[tuple[int, list[int]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: list[NDArray[np.float32]] = []
    monkeypatch.setattr(discovery, "draw_slots", lambda file, *, images, **_: shown.append(images))
    discovery.draw(ObjectDiscovery(MODEL), tmp_path / "slots.png")
    assert drawn == [(0, list(range(2**40, 2**40 + 7)))]
    expected = sample_tetrominoes(0, drawn[0][1])["images"]
    torch.testing.assert_close(torch.from_numpy(shown[0]), torch.from_numpy(expected) / 127.5 - 1)
