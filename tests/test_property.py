"""What property prediction trains on, how it is measured, what it refuses, and that a stopped run goes on exactly."""

import json
import os
import signal
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import tfrecord_writer
import torch
from child import in_child
from lightning_fabric import Fabric
from PIL import Image
from test_prepare import draw_objects, write
from torch import Tensor

from slotattn_fast import cli
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.prepare import generate, prepare
from slotattn_fast.data.properties import NAMES, targets_of
from slotattn_fast.data.synthetic.clevr import sample_clevr
from slotattn_fast.metrics.ari import fg_ari
from slotattn_fast.models.property import PropertyPrediction, Steps, set_loss
from slotattn_fast.models.property_config import PropertyConfig
from slotattn_fast.paper.evaluations import read_evaluation
from slotattn_fast.train import property as property_task
from slotattn_fast.train.config import PRESETS, TrainConfig
from slotattn_fast.train.errors import RunError
from slotattn_fast.train.evaluation import evaluate, show
from slotattn_fast.train.property import PropertyTask
from slotattn_fast.train.run import configuration, create, train
from slotattn_fast.train.setting import DEFAULT, Setting

MODEL = PropertyConfig(
    image_size=16, encoder_channels=4, encoder_strides=(2,), num_slots=4, slot_dim=4, hidden_dim=4, classifier_dim=8
)


def config(model: PropertyConfig = MODEL, **others: Any) -> TrainConfig:
    return replace(PRESETS["property"]["quick"], model=asdict(model), **{"max_objects": 4, "scenes": None, **others})


@pytest.fixture(autouse=True)
def _few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(property_task, "GENERATED_SCENES", 6)


class Oracle(PropertyPrediction):
    """Predicts what it is given, after each iteration but the last nothing; slot k attends to label k + 1."""

    def __init__(self, targets: Tensor, labels: Tensor) -> None:
        super().__init__(replace(MODEL, num_slots=targets.shape[1]))
        self.targets, self.labels = targets, labels

    def iterations(self, images: Tensor, *args: Any, **options: Any) -> Steps:
        K = self.targets.shape[1]
        attention = torch.stack([(self.labels == k + 1).float() for k in range(K)], 1)
        predictions = torch.stack([torch.zeros_like(self.targets), self.targets])
        return Steps(predictions, torch.stack([torch.rand_like(attention), attention]))


def scenes(seed: int, first: int, count: int, size: int = 16) -> dict[str, Tensor]:
    return sample_clevr(seed, np.arange(first, first + count), num_objects=(3, 4), crop=False, size=size)


def test_steps_train_on_whole_images_of_the_models_size_and_their_properties() -> None:
    task = PropertyTask(config(batch_size=3, seed=5))
    with closing(task.batches(2, Fabric(accelerator="cpu", devices=1))) as batches:
        (batch,) = islice(batches, 1)
    drawn = scenes(5, 6, 3)
    assert batch.keys() == {"images", *NAMES}
    assert torch.equal(batch["images"], drawn["images"])
    model = PropertyPrediction(MODEL)
    noise = torch.randn(3, 4, 4)
    expected = model.loss(drawn["images"].permute(0, 3, 1, 2) / 127.5 - 1, targets_of(drawn, 4), noise)
    torch.testing.assert_close(task.loss(model, {**batch, "noise": noise}), expected)


def test_coordinates_are_not_rounded_to_the_precision_of_the_run() -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    task = PropertyTask(config(batch_size=3))
    with closing(task.batches(0, fabric)) as batches:
        batch = fabric._precision.convert_input(next(batches))
    assert torch.equal(batch["coords"].view(torch.float32), scenes(0, 0, 3)["coords"])


def test_what_is_predicted_rightly_scores_one() -> None:
    held_out = scenes(0, 2**40, 6)
    labels = held_out["labels"][:, 1::2, 1::2]  # the pixels in the middle of 2x2, counted from 0
    result = PropertyTask(config()).measure(Oracle(targets_of(held_out, 4), labels))
    assert result["ap"] == dict.fromkeys(("inf", "1", "0.5", "0.25", "0.125"), 1.0)
    assert result["attention_ari"] == 1
    count = held_out["num_objects"]
    assert (result["scenes"], result["objects"], result["iters"]) == (6, int(count.sum()), 3)
    assert {n: found["scenes"] for n, found in result["ap_by_objects"].items()} == {
        str(n): int((count == n).sum()) for n in (3, 4) if (count == n).any()
    }


def test_a_wrong_place_counts_at_small_distances_and_a_wrong_colour_at_all() -> None:
    held_out = scenes(0, 2**40, 6)
    targets = targets_of(held_out, 4)
    moved = targets.clone()
    moved[..., 0] += 0.6 / 6  # 0.6 in the units of the scene
    result = PropertyTask(config()).measure(Oracle(moved, held_out["labels"][:, 1::2, 1::2]))
    assert [result["ap"][d] for d in ("inf", "1", "0.5", "0.125")] == [1, 1, 0, 0]
    moved[..., 10:18] = targets[..., 10:18].roll(1, -1)
    # Little is left: some object has the colour that another's had.
    assert PropertyTask(config()).measure(Oracle(moved, held_out["labels"][:, 1::2, 1::2]))["ap"]["inf"] < 0.05


def test_attention_is_scored_at_the_encoders_resolution() -> None:
    held_out = scenes(0, 2**40, 6)
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (6, 8, 8))
    result = PropertyTask(config()).measure(Oracle(targets_of(held_out, 4), labels + 1))
    expected = fg_ari(labels, held_out["labels"][:, 1::2, 1::2])
    assert result["attention_ari"] == pytest.approx(expected.mean().item())


def test_the_baseline_has_no_attention_and_more_slots_than_objects_may_be(tmp_path: Path) -> None:
    model = replace(MODEL, grouping="slot-mlp", num_slots=7)
    task = PropertyTask(config(model))
    result = task.measure(PropertyPrediction(model))
    assert (result["attention_ari"], result["iters"], result["num_slots"]) == (None, None, 7)
    task.draw(PropertyPrediction(model), tmp_path / "slots.png")
    with Image.open(tmp_path / "slots.png") as picture:
        assert min(picture.size) > 100


def test_prepared_data_is_measured_whole_and_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(property_task, "has_labels", lambda data: False)  # as the published data have none
    folder = generate("clevr", tmp_path / "data", train=2, held_out=9, seed=0, max_objects=4)
    model = replace(MODEL, image_size=128, encoder_strides=(5,))
    task = PropertyTask(config(model, data=str(folder.path)))
    task.require_fitting_data("cpu")
    result = task.measure(PropertyPrediction(model))
    assert (result["scenes"], result["attention_ari"]) == (9, None)
    task.draw(PropertyPrediction(model), tmp_path / "slots.png")


def test_published_clevr_with_masks_has_no_coordinates_but_tells_what_is_attended_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As section 4.2 measures the attention; written as it is published, with the background before the objects."""
    monkeypatch.setattr(tfrecord_writer, "crc32c", google_crc32c.value)
    source, folder = tmp_path / "published.tfrecords", tmp_path / "clevr-with-masks"
    write(source, "clevr_with_masks_train", [draw_objects("clevr_with_masks_train", seed, 4) for seed in range(3)])
    prepare("clevr-with-masks", source, folder, train=1, held_out=2)
    model = replace(MODEL, image_size=128, encoder_strides=(2, 2, 2, 2))
    run = tmp_path / "run"
    create(config(model, data="clevr", steps=1, batch_size=1, device="cpu"), run)
    train(run, configuration(run))
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--data", str(folder)]) == 0
    said = capsys.readouterr().out.splitlines()
    (result,) = (json.loads(path.read_text()) for path in run.glob("eval-data-*.json"))
    assert 0 <= result["attention_ari"] <= 1
    assert (result["scenes"], result["objects"], result["ap_by_objects"]) == (2, None, {})
    assert set(result["ap"].values()) == {None}
    ari = f"attention ARI {100 * result['attention_ari']:.1f} %"
    assert said[0] == f"{run}: no AP without properties on 2 held-out scenes, {ari}; 4 slots, 3 iterations"
    assert read_evaluation(next(run.glob("eval-data-*.json")), "property") == result
    # Neither is there anything to compare pictures with, nor anything to measure of a model without attention.
    needed = r"clevr-with-masks: has no coords in its eval split, only .*labels.*; use data that has them, as clevr$"
    with pytest.raises(DataError, match=needed):
        show(run, Setting(data=str(folder)), out=tmp_path)
    with pytest.raises(DataError, match=needed):
        PropertyTask(config(model)).measure(PropertyPrediction(model), Setting(data=str(folder), iters=0))


def test_other_slots_and_iterations_and_more_objects_than_in_training() -> None:
    model = PropertyPrediction(MODEL)
    task = PropertyTask(config())
    result = task.measure(model, Setting(iters=5, num_slots=8, max_objects=6))
    assert (result["iters"], result["num_slots"], result["max_objects"]) == (5, 8, 6)
    assert result["ap"] != task.measure(model, Setting(iters=1, num_slots=8, max_objects=6))["ap"]
    assert task.measure(model, Setting(iters=0))["attention_ari"] is None


@pytest.mark.parametrize(
    ("model", "others", "error", "message"),
    [
        (
            {"num_slots": 3},
            {},
            RunError,
            "num_slots: got 3, but scenes of clevr have up to 4 objects, .* --num-slots 4",
        ),
        (
            {"num_slots": 9},
            {"max_objects": None},
            RunError,
            "num_slots: got 9, .* up to 10 objects, .* --max-objects 9",
        ),
        ({}, {"data": "tetrominoes"}, DataError, "tetrominoes: has no coords in its eval split, only images, labels"),
        ({"iters": 0}, {}, ValueError, "iters: got 0, expected at least 1 to train with"),
        (
            {},
            {"greyscale": True},
            RunError,
            "are 16x16 with 1 channel, but the model of preset quick takes .* 3 channels",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, model: dict[str, Any], others: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        create(config(replace(MODEL, **model), **others), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("split", "where"), [("train", "train"), ("eval", "eval")])
def test_properties_out_of_range_are_refused(tmp_path: Path, split: str, where: str) -> None:
    folder = generate("clevr", tmp_path / "data", train=3, held_out=2, seed=0, max_objects=4).path
    colours = np.load(folder / split / "color.npy")
    colours[1, 0] = 8
    np.save(folder / split / "color.npy", colours)
    model = replace(MODEL, image_size=128, encoder_strides=(5,))
    with pytest.raises(DataError, match=rf"data: {where}: color\[1, 0\] is 8, expected 0 to 7"):
        create(config(model, data=str(folder)), tmp_path / "run")


def test_what_was_written_to_since_is_refused_before_training_goes_on(tmp_path: Path) -> None:
    folder = generate("clevr", tmp_path / "data", train=3, held_out=2, seed=0, max_objects=4).path
    model = replace(MODEL, image_size=128, encoder_strides=(5,))
    create(config(model, data=str(folder), steps=1, batch_size=2), tmp_path / "run")
    coords = np.load(folder / "train" / "coords.npy")
    coords[0, 0] = np.nan
    np.save(folder / "train" / "coords.npy", coords)
    with pytest.raises(DataError, match=r"data: train: coords\[0, 0, 0\] is nan, expected -3 to 3"):
        train(tmp_path / "run", configuration(tmp_path / "run"))

    create(config(), tmp_path / "other")
    edited = json.loads((tmp_path / "other" / "config.json").read_text())
    for changed, message in (({"num_slots": 3}, "num_slots: got 3, but scenes"), ({"iters": 0}, "iters: got 0, exp")):
        text = json.dumps({**edited, "model": {**edited["model"], **changed}})
        (tmp_path / "other" / "config.json").write_text(text)
        with pytest.raises(RunError, match=message):
            train(tmp_path / "other", configuration(tmp_path / "other"))


def test_more_objects_than_a_folder_was_generated_with_are_not_measured(tmp_path: Path) -> None:
    """They would be told of scenes that are not there; a training on so many at most just leaves none out."""
    folder = generate("clevr", tmp_path / "data", train=3, held_out=2, seed=0, max_objects=4).path
    model = replace(MODEL, image_size=128, encoder_strides=(5,), num_slots=5)
    run = tmp_path / "run"
    create(config(model, data=str(folder), max_objects=5, steps=1, batch_size=2), run)
    train(run, configuration(run))
    assert evaluate(run, Setting(max_objects=4))["max_objects"] == 4
    message = "data: got max_objects 5, expected at most 4, with which it was generated; give --max-objects 4, or "
    for call in (evaluate, show):
        with pytest.raises(DataError, match=message):
            call(run, Setting(max_objects=5))


OPTIONS = [
    *("--image-size", "16", "--encoder-channels", "4", "--encoder-strides", "2", "--num-slots", "4"),
    *("--max-objects", "4", "--slot-dim", "8", "--hidden-dim", "8", "--batch-size", "2", "--log-every", "1"),
    *("--warmup-steps", "2", "--checkpoint-every", "3", "--device", "cpu"),
]


def trained(out: Path, name: str, *options: str) -> int:
    return cli.main(["train", "property", "--out", str(out), "--name", name, *OPTIONS, *options])


def test_a_run_ends_with_weights_evaluation_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained(tmp_path, "run", "--steps", "4", "--no-implicit", "--stepwise", "--coordinate-scale", "2") == 0
    run = tmp_path / "run"
    saved = json.loads((run / "config.json").read_text())
    assert (saved["task"], saved["preset"], saved["steps"]) == ("property", "quick", 4)
    assert (saved["model"]["stepwise"], saved["model"]["coordinate_scale"]) == (True, 2)
    result = json.loads((run / "eval.json").read_text())
    assert result["train_loss"] > 0
    out = capsys.readouterr().out
    assert f"AP {100 * result['ap']['inf']:.1f}" in out
    assert out.endswith(f"{run / 'slots.png'}\n")
    assert cli.main(["eval", str(run), "--iters", "1", "--num-slots", "6", "--max-objects", "5"]) == 0
    shown = capsys.readouterr().out
    assert "Slot Attention" in shown
    assert "unverified" in shown
    assert json.loads((run / "eval-iters-1-slots-6-objects-5.json").read_text())["num_slots"] == 6
    again = evaluate(run, DEFAULT)
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    picture = (run / "slots.png").read_bytes()
    assert show(run, DEFAULT, out=tmp_path / "elsewhere") == [tmp_path / "elsewhere" / "slots.png"]
    assert (tmp_path / "elsewhere" / "slots.png").read_bytes() == picture
    with pytest.raises(RunError, match="complete after 4 steps"):
        train(run, configuration(run))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path, precision: str) -> None:
    options = ["--steps", "9", "--precision", precision, "--scenes", "7"]  # the third epoch
    assert trained(tmp_path, "whole", *options) == 0

    def stopped() -> None:
        loss, count = PropertyTask.loss, 0

        def counted(self: PropertyTask, *args: Any) -> Tensor:
            nonlocal count
            count += 1
            if count == 5:
                signal.raise_signal(signal.SIGTERM)
            return loss(self, *args)

        PropertyTask.loss = counted  # type: ignore[method-assign]
        os._exit(trained(tmp_path, "cut", *options))

    assert in_child(stopped) == 128 + signal.SIGTERM
    cut = tmp_path / "cut"
    assert [path.name for path in sorted((cut / "checkpoints").iterdir())] == ["step-00000003.pt", "step-00000005.pt"]
    assert not (cut / "model.safetensors").exists()
    assert cli.main(["train", "resume", str(cut)]) == 0
    assert (cut / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    rows = [
        [line.rpartition(",")[0] for line in (tmp_path / name / "metrics.csv").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert rows[0] == rows[1]


def test_a_prediction_that_is_not_finite_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained(tmp_path, "run", "--steps", "9", "--lr", "1e30", "--warmup-steps", "0") == 1
    assert "train again with a lower --lr" in capsys.readouterr().err


def test_a_run_that_diverged_in_its_last_step_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained(tmp_path, "run", "--steps", "1", "--lr", "1e25", "--warmup-steps", "0") == 1
    assert "not finite: it diverged; train again with a lower --lr" in capsys.readouterr().err


def test_set_loss_takes_a_batch_of_none() -> None:
    assert set_loss(torch.rand(0, 4, 19), torch.rand(0, 4, 19)).isnan()
