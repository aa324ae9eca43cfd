"""The models that come with the package: whole, small, and as good as they say."""

import json
from pathlib import Path

import pytest

from slotattn_fast.pretrained import PRETRAINED, pretrained
from slotattn_fast.train import run_folder
from slotattn_fast.train.config import PRESETS
from slotattn_fast.train.evaluation import evaluate
from slotattn_fast.train.setting import DEFAULT

FILES = {"config.json", "env.json", "eval.json", "metrics.csv", "model.safetensors"}


def test_there_are_some() -> None:
    assert "quick" in PRETRAINED


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_model_is_as_good_as_its_evaluation_says(name: str) -> None:
    run = pretrained(name)
    before = _contents(run)
    assert before.keys() == FILES
    assert sum(map(len, before.values())) < 8_000_000
    said = json.loads(before["eval.json"])
    found = evaluate(run, DEFAULT, "cpu")
    assert found["fg_ari"] == pytest.approx(said["fg_ari"], abs=1e-3)
    assert found["mse"] == pytest.approx(said["mse"], rel=1e-3)
    assert found["train_loss"] == said["train_loss"]
    assert found["fg_ari"] > 0.9
    config = run_folder.read_config(run)
    assert config.model.items() >= PRESETS["discovery"][config.preset].model.items()
    assert _contents(run) == before


def _contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}
