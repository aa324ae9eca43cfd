"""Which scenes the discovery task trains on, which it is measured on, and in what form they reach the model."""

import shutil
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from clevr_writer import draw, write_published
from lightning_fabric import Fabric
from numpy.typing import ArrayLike, NDArray

from slotattn_fast import cli
from slotattn_fast.data import generated
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.prepare import generate, prepare
from slotattn_fast.data.synthetic.tetrominoes import sample_tetrominoes
from slotattn_fast.models.discovery import ObjectDiscovery
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.paper.evaluations import read_evaluation
from slotattn_fast.train import discovery, run_data
from slotattn_fast.train.config import PRESETS, TrainConfig
from slotattn_fast.train.discovery import Discovery
from slotattn_fast.train.errors import RunError
from slotattn_fast.train.evaluation import evaluate, show
from slotattn_fast.train.loop import seed_of
from slotattn_fast.train.run import configuration, create, train
from slotattn_fast.train.run_data import to_model
from slotattn_fast.train.setting import DEFAULT

MODEL = DiscoveryConfig(encoder_channels=4, slot_dim=4, hidden_dim=4, decoder_channels=4)


def config(**others: object) -> TrainConfig:
    return replace(PRESETS["discovery"]["quick"], model=asdict(MODEL), **others)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Every seed and its scenes that are asked for in a test, in order."""
    calls: list[tuple[int, list[int]]] = []

    def sample(seed: int, scenes: ArrayLike) -> dict[str, NDArray[np.uint8]]:
        calls.append((seed, np.asarray(scenes).tolist()))
        return sample_tetrominoes(seed, scenes)

    monkeypatch.setattr(generated, "sample_tetrominoes", sample)
    return calls


def test_steps_train_on_the_scenes_of_the_seed_one_after_the_other(drawn: list[tuple[int, list[int]]]) -> None:
    task = Discovery(config(batch_size=3, seed=5))
    with closing(task.batches(7, Fabric(accelerator="cpu", devices=1))) as batches:
        images = [batch["images"] for batch in islice(batches, 2)]
    assert drawn[:2] == [(5, [21, 22, 23]), (5, [24, 25, 26])]
    np.testing.assert_array_equal(images[1].numpy(), sample_tetrominoes(5, [24, 25, 26])["images"])


def test_so_many_scenes_come_again_each_once_an_epoch(drawn: list[tuple[int, list[int]]]) -> None:
    task = Discovery(config(batch_size=5, seed=5, scenes=5))
    with closing(task.batches(0, Fabric(accelerator="cpu", devices=1))) as batches:
        epochs = [sorted(map(bytes, batch["images"].numpy())) for batch in islice(batches, 3)]
    assert epochs == [sorted(map(bytes, sample_tetrominoes(5, range(5))["images"]))] * 3
    assert drawn == [(5, [0, 1, 2, 3, 4])]


def test_held_out_scenes_are_320_that_no_seed_trains_on(drawn: list[tuple[int, list[int]]]) -> None:
    assert Discovery(config()).measure(ObjectDiscovery(MODEL))["scenes"] == 320
    assert {seed for seed, _ in drawn} == {0}
    assert [scene for _, scenes in drawn for scene in scenes] == list(range(2**40, 2**40 + 320))


def test_every_batch_of_an_evaluation_has_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in every evaluation, of which the published figures are made."""
    drawn = []

    def recorded(*key: int) -> int:
        drawn.append(key)
        return seed_of(*key)

    monkeypatch.setattr(run_data, "seed_of", recorded)
    monkeypatch.setattr(discovery, "EVAL_SCENES", 70)
    Discovery(config(seed=5)).measure(ObjectDiscovery(MODEL))
    assert drawn == [(0, 3, 0), (0, 3, 1), (0, 3, 2)]


def test_the_picture_shows_the_first_held_out_scenes(
    drawn: list[tuple[int, list[int]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: list[NDArray[np.float32]] = []
    monkeypatch.setattr(discovery, "draw_slots", lambda file, *, images, **_: shown.append(images))
    Discovery(config()).draw(ObjectDiscovery(MODEL), tmp_path / "slots.png")
    assert drawn == [(0, list(range(2**40, 2**40 + 7)))]
    expected = sample_tetrominoes(0, drawn[0][1])["images"]
    torch.testing.assert_close(torch.from_numpy(shown[0]), torch.from_numpy(expected) / 127.5 - 1)


def test_a_prepared_folder_is_measured_on_the_scenes_that_it_has(tmp_path: Path) -> None:
    folder = generate("tetrominoes", tmp_path / "data", train=4, held_out=35)
    model = ObjectDiscovery(MODEL)
    result = Discovery(config(data=str(folder.path))).measure(model)
    assert result["scenes"] == 35
    # They are the first of those that the generated data set is measured on.
    first = Discovery(config()).measure(model)
    assert result["mse"] == pytest.approx(first["mse"], rel=0.1)
    Discovery(config(data=str(folder.path))).draw(ObjectDiscovery(MODEL), tmp_path / "slots.png")


def test_images_reach_the_model_in_minus_one_to_one() -> None:
    images = torch.tensor([[[[0, 51, 255]], [[255, 255, 255]]]], dtype=torch.uint8)  # [1, 2, 1, 3]
    values = to_model(images)
    torch.testing.assert_close(values[0, :, 0, 0], torch.tensor([-1, -0.6, 1]))
    assert values.is_contiguous(memory_format=torch.channels_last)
    grey = to_model(images, greyscale=True)
    torch.testing.assert_close(grey[0, :, :, 0], torch.tensor([[-0.2, 1]]))


def test_one_channel_is_trained_on_and_drawn(tmp_path: Path) -> None:
    grey = replace(MODEL, image_channels=1)
    of = config(greyscale=True)
    assert Discovery(of).measure(ObjectDiscovery(grey))["mse"] > 0
    Discovery(of).draw(ObjectDiscovery(grey), tmp_path / "slots.png")


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        (
            {"data": "multi-dsprites-binarized"},
            RunError,
            "quick takes 35x35 .*; choose --preset multi-dsprites-binarized$",
        ),
        ({"greyscale": True}, RunError, "are 35x35 with 1 channel, but the model of preset quick takes .* 3 channels"),
        ({"data": "tetromino"}, DataError, "got 'tetromino', which is neither a prepared folder nor one of clevr, "),
        ({"max_objects": 2}, DataError, "only CLEVR is drawn with fewer objects"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_anything_is_written(
    others: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        create(config(**others), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_without_labels_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Training would do without them until the first picture."""
    write_published(tmp_path / "published", {"train": [draw(0, 3)], "validation": [draw(1, 3)]})
    folder = prepare("clevr", tmp_path / "published", tmp_path / "data", train=1, held_out=1).path
    of = replace(PRESETS["discovery"]["clevr6"], data=str(folder), device="cpu")
    with pytest.raises(DataError, match=r"has no labels in its eval split, only .*; use data that has them, as clevr-"):
        create(of, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_an_object_in_any_scene_there_is_no_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = generate("tetrominoes", tmp_path / "data", train=2, held_out=3).path
    labels = folder / "eval" / "labels.npy"
    np.save(labels, np.zeros_like(np.load(labels)))
    run = tmp_path / "run"
    create(config(data=str(folder), steps=1, batch_size=2, device="cpu"), run)
    assert train(run, configuration(run))["fg_ari"] is None
    assert "NaN" not in (run / "eval.json").read_text()
    assert read_evaluation(run / "eval.json", "discovery")["left_out"] == 3
    assert cli.main(["eval", str(run)]) == 0
    said = f"{run}: FG-ARI - on 0 held-out scenes (3 without an object left out), MSE "
    assert capsys.readouterr().out.startswith(said)


def test_a_run_is_held_to_the_data_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder, again = tmp_path / "run", tmp_path / "data", tmp_path / "again"
    uses = (
        lambda: train(run, configuration(run)),
        lambda: evaluate(run, DEFAULT),
        lambda: show(run, DEFAULT),
    )
    generate("tetrominoes", folder, train=4, held_out=2)
    create(config(data=str(folder), steps=1, batch_size=2, device="cpu"), run)
    shutil.rmtree(folder)
    for use in uses:
        with pytest.raises(RunError, match="data: the run's data is not there; put it back, or say by --data where"):
            use()
    generate("tetrominoes", folder, train=4, held_out=3)
    for use in uses:
        with pytest.raises(RunError, match="not the data that the run began with; put that back, or say by --data"):
            use()
    # The same contents made anew, elsewhere or later, are the same data.
    generate("tetrominoes", again, train=4, held_out=2)
    monkeypatch.chdir(tmp_path)
    assert configuration(run, data="again").data == str(again)
    assert cli.main(["train", "resume", str(run), "--data", "again"]) == 0
    assert read_evaluation(run / "eval.json", "discovery")["scenes"] == 2
    shutil.rmtree(folder)
    again.rename(folder)
    evaluate(run, DEFAULT)


def test_a_run_that_draws_its_data_has_no_folder_of_it(tmp_path: Path) -> None:
    create(config(device="cpu"), tmp_path / "run")
    with pytest.raises(ValueError, match="data: got 'x', expected nothing: the run draws tetrominoes while it trains"):
        configuration(tmp_path / "run", data="x")


def test_a_data_set_that_needs_greyscale_says_so(tmp_path: Path) -> None:
    of = replace(PRESETS["discovery"]["multi-dsprites"], data="multi-dsprites-binarized")
    with pytest.raises(RunError, match=r"choose --preset multi-dsprites-binarized$"):
        create(of, tmp_path / "run")
    grey = replace(of, greyscale=True, model={**of.model, "image_channels": 1}, device="cpu")
    create(grey, tmp_path / "run")
