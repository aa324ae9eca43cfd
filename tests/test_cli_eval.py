"""`slotattn eval` and `show` with other settings than the training's, of several runs, and of models in the package."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from slotattn_fast import cli, cli_eval, pretrained
from slotattn_fast.report.tables import evaluation_line, seeds_lines
from slotattn_fast.train import discovery, evaluation, run_folder


@pytest.fixture(autouse=True)
def _few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "EVAL_SCENES", 4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discovery, "EVAL_SCENES", 4)
        size = ["--steps", "6", "--batch-size", "2", "--log-every", "1", "--warmup-steps", "0"]
        assert cli.main(["train", "discovery", *size, "--out", str(out), "--name", "run"]) == 0
    return out / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def _evaluation(run: Path, name: str) -> dict[str, object]:
    return json.loads((run / name).read_text())


def _line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("slotattn: ")
    return line


def test_iterations_and_slots_of_an_evaluation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = _evaluation(run, "eval.json")
    assert (trained["iters"], trained["num_slots"]) == (10, 3)
    assert cli.main(["eval", str(run), "--iters", "1", "10", "--num-slots", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("; ")[1] for line in lines] == ["5 slots, 1 iteration", "5 slots, 10 iterations"]
    one, ten = (_evaluation(run, f"eval-iters-{iters}-slots-5.json") for iters in (1, 10))
    assert (one["iters"], ten["iters"], one["num_slots"]) == (1, 10, 5)
    assert one["mse"] != ten["mse"] != trained["mse"]
    assert _evaluation(run, "eval.json") == trained  # the run's own stays
    assert cli.main(["eval", str(run), "--iters", "10"]) == 0
    assert _evaluation(run, "eval-iters-10.json")["mse"] == trained["mse"]


def test_pictures_of_other_settings_leave_the_runs_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.glob("*.png")}
    assert cli.main(["show", str(run), "--iters", "1", "--num-slots", "5"]) == 0
    drawn = [Path(line) for line in capsys.readouterr().out.split()]
    assert {path.parent for path in drawn} == {run / "show-iters-1-slots-5"}
    assert {path: path.read_bytes() for path in run.glob("*.png")} == before
    assert cli.main(["show", str(run)]) == 0
    assert {Path(line) for line in capsys.readouterr().out.split()} == set(before)


def test_a_folder_that_was_there_stays_where_nothing_can_be_drawn(run: Path, tmp_path: Path) -> None:
    there, made = tmp_path / "there", tmp_path / "made"
    there.mkdir()
    for out in (there, made):
        assert cli.main(["show", str(run), "--num-slots", "0", "--out", str(out)]) == 2
    assert there.is_dir()
    assert not made.exists()


def test_an_evaluation_that_cannot_be_kept_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise OSError(30, "Read-only file system", "eval.json")

    monkeypatch.setattr(run_folder, "write_json", fails)
    assert cli.main(["eval", str(run)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"{run}: FG-ARI")
    assert "Read-only file system" in told.err
    assert told.err.endswith("; the evaluation is not kept\n")


def test_other_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    assert cli.main(["data", "generate", "tetrominoes", "--out", str(data), "--train", "1", "--eval", "3"]) == 0
    shutil.copytree(data, tmp_path / "elsewhere" / "data")
    for folder in (data, tmp_path / "elsewhere" / "data"):
        assert cli.main(["eval", str(run), "--data", str(folder)]) == 0
    results = [json.loads(path.read_text()) for path in run.glob("eval-data-data-*.json")]
    assert sorted(result["data"] for result in results) == [str(data), str(tmp_path / "elsewhere" / "data")]
    assert [result["scenes"] for result in results] == [3, 3]
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--data", "multi-dsprites-binarized"]) == 1
    assert "are 64x64 with 1 channel, but the model of preset quick takes 35x35 with 3 channels" in _line(capsys)
    assert cli.main(["eval", str(run), "--max-objects", "2"]) == 1
    assert "only CLEVR is drawn with fewer objects" in _line(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-slots", "0"], "num_slots must be at least 1, got 0"),
        (["--iters", "-1"], "iters"),
        (["--pretrained", "quick"], "give a run folder, or --pretrained NAME, and not both"),
        (["--max-objects", "0"], "max_objects: got 0, expected an integer of at least 1, or None"),
    ],
)
@pytest.mark.parametrize("command", ["eval", "show"])
def test_settings_that_cannot_be(
    run: Path, capsys: pytest.CaptureFixture[str], command: str, options: list[str], message: str
) -> None:
    before = sorted(path.name for path in run.iterdir())
    assert cli.main([command, str(run), *options]) == 2
    assert message in _line(capsys)
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.parametrize("command", ["eval", "show"])
def test_neither_a_run_nor_a_model(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command]) == 2
    assert _line(capsys) == "slotattn: give a run folder, or --pretrained NAME"
    assert cli.main([command, "--pretrained", "clever"]) == 2
    assert "pretrained: got 'clever', expected one of" in _line(capsys)


def test_several_runs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    metrics = other / "metrics.csv"
    metrics.write_text(re.sub(r"^(6),[^,]*", r"\1,99.5", metrics.read_text(), flags=re.MULTILINE))
    assert cli.main(["eval", str(run), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    score = _evaluation(run, "eval.json")["fg_ari"]
    assert lines[2].startswith(f"{other}: failed: its training loss, 99.50000, is ")
    assert lines[3:] == [
        f"2 runs: FG-ARI {score:.4f} +- 0.0000 (mean and standard deviation)",
        f"without the 1 that failed: FG-ARI {score:.4f}",
    ]
    assert _evaluation(other, "eval.json")["train_loss"] == 99.5
    # Named twice, a run is one.
    assert cli.main(["eval", str(run), str(run)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_runs_that_are_not_seeds_of_one_experiment(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    path = other / "config.json"
    path.write_text(path.read_text().replace('"lr": 0.002', '"lr": 0.001').replace('"seed": 0', '"seed": 1'))
    assert cli.main(["eval", str(run), str(other)]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "no mean: these are not seeds of one experiment, for they differ in lr"
    ]


def test_every_run_is_there_before_the_first_is_measured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", str(run), str(tmp_path / "absent")]) == 1
    assert "no such run folder" in _line(capsys)
    assert cli.main(["eval", str(run), "--iters"]) == 2
    assert "iters: got nothing, expected one or more integers" in _line(capsys)


def test_the_slot_mlp_has_no_iterations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--steps", "1", "--batch-size", "1", "--encoder-channels", "4", "--out", str(tmp_path), "--name", "mlp"]
    assert cli.main(["train", "discovery", "--grouping", "slot-mlp", *size]) == 0
    run = tmp_path / "mlp"
    begun, line, *pictures = capsys.readouterr().out.splitlines()
    assert begun == f"{run}: 1 steps on cpu"
    assert line.endswith("; 3 slots")
    assert pictures == [str(run / "slots.png")]
    assert _evaluation(run, "eval.json")["iters"] is None
    assert cli.main(["eval", str(run), "--iters", "5"]) == 2
    assert "iters: got 5, expected none, as the model has grouping='slot-mlp': 3 slots and no iterations" in _line(
        capsys
    )


def test_scenes_that_do_not_count_are_said() -> None:
    result = {"scenes": 320, "left_out": 3, "fg_ari": 0.5, "mse": 0.25, "num_slots": 1, "iters": 1}
    assert evaluation_line("run", result) == (
        "run: FG-ARI 0.5000 on 317 held-out scenes (3 without an object left out), MSE 0.25000; 1 slot, 1 iteration"
    )


def test_mean_deviation_and_failure_by_hand() -> None:
    results = {
        "a": {"fg_ari": 0.9, "train_loss": 0.01},
        "b": {"fg_ari": 0.7, "train_loss": 0.0199},
        "c": {"fg_ari": 0.2, "train_loss": 0.021},
        "d": {"fg_ari": 0.6, "train_loss": None},
    }
    assert seeds_lines(results) == [
        "c: failed: its training loss, 0.02100, is 2.1 times the lowest; stripes?",
        "4 runs: FG-ARI 0.6000 +- 0.2944 (mean and standard deviation)",
        "without the 1 that failed: FG-ARI 0.7333 +- 0.1528 (mean and standard deviation)",
    ]


@pytest.mark.parametrize("lacking", [("a",), ("a", "b")])
def test_a_score_that_a_run_lacks_has_no_mean(lacking: tuple[str, ...]) -> None:
    results = {name: {"fg_ari": None if name in lacking else 0.9, "train_loss": 0.01} for name in ("a", "b")}
    assert seeds_lines(results) == ["2 runs: FG-ARI - (mean and standard deviation)"]


def test_the_training_loss_weighs_a_row_by_its_steps(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n970,9\n985,1\n990,2\n1000,4\n")
    assert evaluation.train_loss(tmp_path, 1000) == pytest.approx((15 * 1 + 5 * 2 + 10 * 4) / 30)
    (tmp_path / "metrics.csv").write_text("step,loss\n10,9\n")
    assert evaluation.train_loss(tmp_path, 1000) is None
    (tmp_path / "metrics.csv").unlink()
    assert evaluation.train_loss(tmp_path, 1000) is None


def test_show_with_other_iterations_elsewhere(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(run), "--iters", "2", "--num-slots", "4", "--out", str(tmp_path / "a" / "b")]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert paths == [tmp_path / "a" / "b" / name for name in ("slots.png", "iterations.png")]
    with Image.open(paths[1]) as two, Image.open(run / "iterations.png") as ten:
        assert two.height < ten.height
        assert two.width > ten.width


def test_models_of_the_package_are_left_as_they_are(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for left_out in ("checkpoints", "images", "tb"):
        shutil.rmtree(run / left_out)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    monkeypatch.setattr(pretrained, "PRETRAINED", ("model",))
    monkeypatch.setattr(cli_eval, "pretrained", lambda name: run)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["eval", "--pretrained", "model", "--iters", "2"]) == 0
    assert capsys.readouterr().out.startswith("model: FG-ARI ")
    assert cli.main(["show", "--pretrained", "model"]) == 0
    assert capsys.readouterr().out.splitlines() == ["slots.png", "iterations.png"]
    assert (tmp_path / "slots.png").exists()
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
