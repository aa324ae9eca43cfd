"""The presets named for the paper's experiments: their figures, and a training step of each from the command line."""

import csv
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from slotattn_fast import cli
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.models.property_config import PropertyConfig
from slotattn_fast.train import discovery
from slotattn_fast.train.config import PRESETS

PAPER = [name for name in PRESETS["discovery"] if name != "quick"]
# One channel has multi-dsprites-binarized too, and the rest clevr6.
STEPPED = [name for name in PAPER if name != "clevr6-greyscale"]
# Data, K, image size, channels, most objects: section 4.1, Appendix E.1 and E.8, Tables 3 to 6.
FIGURES = {
    "tetrominoes": ("tetrominoes", 4, 35, 3, None),
    "multi-dsprites": ("multi-dsprites-colored-on-grayscale", 6, 64, 3, None),
    "multi-dsprites-binarized": ("multi-dsprites-binarized", 4, 64, 1, None),
    "clevr6": ("clevr-with-masks", 7, 128, 3, 6),
    "clevr6-greyscale": ("clevr-with-masks", 7, 128, 1, 6),
}


@pytest.mark.parametrize("name", PAPER)
def test_figures(name: str) -> None:
    preset = PRESETS["discovery"][name]
    model = DiscoveryConfig(**preset.model)
    found = (preset.data, model.num_slots, model.image_size, model.image_channels, preset.max_objects)
    assert found == FIGURES[name]
    assert preset.greyscale == (model.image_channels == 1)
    assert (preset.steps, preset.batch_size, preset.lr, preset.precision) == (500_000, 64, 4e-4, "32-true")
    assert (preset.warmup_steps, preset.decay, preset.decay_steps) == (10_000, "exponential", 100_000)
    assert (model.iters, model.slot_dim, model.hidden_dim, model.implicit) == (3, 64, 128, False)
    channels = 64 if "clevr" in name else 32
    assert (model.encoder_channels, model.decoder_channels) == (channels, channels)


@pytest.mark.parametrize(("name", "most"), [("clevr10", None), ("clevr6", 6)])
def test_figures_of_set_prediction(name: str, most: int | None) -> None:
    """Section 4.2, Appendix E.4 and E.8, Table 4."""
    preset = PRESETS["property"][name]
    model = PropertyConfig(**preset.model)
    assert (preset.data, preset.max_objects, model.num_slots, preset.greyscale) == ("clevr", most, most or 10, False)
    assert (preset.steps, preset.batch_size, preset.lr, preset.precision) == (150_000, 512, 4e-4, "32-true")
    assert (preset.warmup_steps, preset.decay, preset.decay_steps) == (1_000, "exponential", 50_000)
    assert (model.image_size, model.encoder_channels, model.encoder_strides) == (128, 64, (1, 2, 2, 1))
    assert (model.iters, model.slot_dim, model.hidden_dim, model.implicit) == (3, 64, 128, False)
    assert preset.scenes is None


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_of_the_papers_configuration(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the generator to eval.json and the pictures; two images, and two that are evaluated."""
    for few in ("EVAL_SCENES", "DRAWN_SCENES", "DRAWN_SCENES_BY_ITERATION"):
        monkeypatch.setattr(discovery, few, 2)
    size = ["--steps", "2", "--batch-size", "2", "--checkpoint-every", "1", "--log-every", "1"]
    size += ["--out", str(tmp_path), "--name", "run"]
    assert cli.main(["train", "discovery", "--preset", name, "--device", "cpu", *size]) == 0
    run = tmp_path / "run"
    with (run / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 2
    assert all(0 < loss < 4 for loss in losses)
    result = json.loads((run / "eval.json").read_text())
    assert (result["scenes"], result["num_slots"], result["iters"]) == (2, FIGURES[name][1], 3)
    assert result["max_objects"] == FIGURES[name][4]
    # The first step has rate 0, the second moves every weight.
    before = torch.load(run / "checkpoints" / "step-00000001.pt", weights_only=True)["model"]
    after = safetensors.torch.load_file(run / "model.safetensors")
    still = {key for key, value in after.items() if torch.equal(value, before[key])}
    assert still == set()
