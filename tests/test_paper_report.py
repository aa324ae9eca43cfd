"""The report of evaluations that are made up: every number in its place, damage told, nothing that stops it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from slotattn_fast import cli
from slotattn_fast.data.prepare import generate
from slotattn_fast.paper import plots, runner
from slotattn_fast.paper import report as paper_report
from slotattn_fast.paper.bases import Scale
from slotattn_fast.paper.experiments import EXPERIMENTS, ITERATIONS, Arm
from slotattn_fast.paper.forms import iteration_curves, object_curves, score_bars
from slotattn_fast.paper.plots import Bars, Curves, Panel
from slotattn_fast.paper.report import _at_scale, _hours, write_report
from slotattn_fast.paper.results import Found, collect
from slotattn_fast.paper.trainings import training_of
from slotattn_fast.report.tables import DISTANCES
from slotattn_fast.train import run_folder
from slotattn_fast.train.environment import environment
from slotattn_fast.train.run import resolved
from slotattn_fast.train.setting import DEFAULT, Setting


def made_up(out: Path, arm: Arm, seed: int, scale: Scale = "quick", **result: Any) -> Path:
    """A complete run with an evaluation for each setting of the arm."""
    training = training_of(arm, scale)
    run = training.run(out, seed)
    if not run.exists():
        run_folder.create(run, resolved(replace(training.config, seed=seed)), environment("cpu"))
        (run / "model.safetensors").touch()
        (run / "metrics.csv").write_text("step,loss,lr,images_per_second\n50,1,1,100.0\n")
        for picture in ("slots", "iterations"):
            Image.new("RGB", (40, 30), (200, 100, 0)).save(run / f"{picture}.png")
        run_folder.write_json(run / "eval.json", whole(arm, scale, DEFAULT, **result))
    for setting in arm.settings:
        run_folder.write_json(run / setting.file(), whole(arm, scale, setting, **result))
    return run


def whole(arm: Arm, scale: Scale, setting: Setting, **result: Any) -> dict[str, Any]:
    config = training_of(arm, scale).config
    made: dict[str, Any] = {
        "scenes": 320,
        "train_loss": 1.0,
        "data": setting.of(config).data,
        "num_slots": 3,
        "iters": 3,
    }
    if config.task == "discovery":
        return {**made, "fg_ari": 0.5, "left_out": 0, **result}
    ap = dict.fromkeys(DISTANCES, 0.25)
    return {**made, "ap": ap, "ap_by_objects": {"3": {"scenes": 9, **ap}}, "attention_ari": 0.75, **result}


def report(out: Path, *names: str, scale: Scale = "quick") -> str:
    runner.open_folder(out, scale, names)
    write_report(names, out, scale)
    return (out / "report.md").read_text()


def begun(out: Path, name: str) -> list[Found]:
    """Of the experiment, the arms that have a run."""
    return [found for found in collect(EXPERIMENTS[name], "quick", out) if found.runs]


def test_scores_beside_the_published(tmp_path: Path) -> None:
    runner.open_folder(tmp_path, "quick", [])
    clevr6, mlp, *_ = EXPERIMENTS["table-2"].arms
    for seed, score in enumerate((0.5, 0.7, 0.1)):
        made_up(tmp_path, clevr6, seed, fg_ari=score, train_loss=5.0 if seed == 2 else 1.0)
        made_up(tmp_path, mlp, seed, fg_ari=0.05)
    text = report(tmp_path, "table-2")
    for line in (
        "| CLEVR6: Slot Attention | 3 | 43.3 +- 30.6 |",
        "| CLEVR6: Slot Attention, without the failed | 2 | 60.0 +- 14.1 |",
        "| CLEVR6: Slot Attention (published) |  | 98.8 +- 0.3 |",
        "| CLEVR6: Slot MLP | 3 | 5.0 +- 0.0 |",
        "| CLEVR6: MONet (quoted by the paper) |  | 96.2 +- 0.6 |",
        "- as published: CLEVR6: Slot Attention above CLEVR6: Slot MLP: FG-ARI 43.3 +- 30.6 and 5.0 +- 0.0 %, 3 seeds",
        "- CLEVR6: Slot Attention, seed 2: failed: its training loss is 5.0 times the lowest",
        "Not run: Multi-dSprites: Slot Attention; Multi-dSprites: Slot MLP; Tetrominoes",
        "| table-2: Object discovery on three data sets | Table 2, section 4.1 | 1 of 1 |",
        "- data, generated look-alikes of: clevr-with-masks",
    ):
        assert line in text
    (bars,) = score_bars(begun(tmp_path, "table-2"))
    assert (bars.title, bars.ylabel, bars.groups) == ("CLEVR6", "FG-ARI, %", ("FG-ARI",))
    assert bars.arms == {"Slot Attention": [[50, 70, 10]], "Slot MLP": [[5, 5, 5]]}


def test_each_number_of_iterations_has_its_score(tmp_path: Path) -> None:
    runner.open_folder(tmp_path, "quick", [])
    arm = EXPERIMENTS["figure-2"].arms[0]
    run = made_up(tmp_path, arm, 0)
    for number, setting in enumerate(ITERATIONS, 1):
        run_folder.write_json(run / setting.file(), whole(arm, "quick", setting, fg_ari=number / 8))
    text = report(tmp_path, "figure-2")
    assert "| iterations when testing, % | 1 | 2 | 3 | 4 | 5 | 6 | 7 |" in text
    assert "| Tetrominoes | 12.5 | 25.0 | 37.5 | 50.0 | 62.5 | 75.0 | 87.5 |" in text
    (curves,) = iteration_curves(begun(tmp_path, "figure-2"))
    assert (curves.x, curves.ylabel) == ([1, 2, 3, 4, 5, 6, 7], "FG-ARI, %")
    assert curves.lines == {"Tetrominoes": [[12.5], [25], [37.5], [50], [62.5], [75], [87.5]]}


def test_ap_and_attention(tmp_path: Path) -> None:
    runner.open_folder(tmp_path, "quick", [])
    (arm, _), (attention,) = EXPERIMENTS["figure-5-left"].arms, EXPERIMENTS["attention-ari"].arms
    ap = dict(zip(DISTANCES, (0.9, 0.8, 0.7, 0.6, 0.5), strict=True))
    made_up(tmp_path, arm, 0, ap=ap)
    made_up(tmp_path, attention, 0)
    made_up(tmp_path, EXPERIMENTS["figure-5-right"].arms[0], 0, ap_by_objects={"4": {"scenes": 3, **ap}})
    text = report(tmp_path, "figure-5-left", "attention-ari", "figure-5-right")
    for line in (
        "| AP in %, by distance | seeds | inf | 1 | 0.5 | 0.25 | 0.125 |",
        "| Slot Attention | 1 | 90.0 | 80.0 | 70.0 | 60.0 | 50.0 |",
        "| Slot Attention (published, unverified) |  | 94.3 +- 1.1 | 86.7 +- 1.4 | 56.0 +- 3.6 |",
        "| DSPN, T = 30 (quoted by the paper, unverified) |  | 85.2 +- 4.8 |",
        "| % | seeds | attention ARI |",
        "| Slot Attention | 1 | 75.0 |",
        "| Slot Attention (published) |  | 78.0 +- 2.9 |",
        "| objects in the scene, AP in % | 3 | 4 | 5 |",
        "| AP (0.125) | - | 50.0 | - |",
        "slotattn eval RUN --num-slots 10 --max-objects 10",
    ):
        assert line in text
    (bars,) = score_bars(begun(tmp_path, "figure-5-left"))
    assert (bars.groups, bars.arms) == (DISTANCES, {"Slot Attention": [[90], [80], [70], [60], [50]]})
    (curves,) = object_curves(begun(tmp_path, "figure-5-right"))
    assert curves.x == [3, 4, 5, 6, 7, 8, 9, 10]
    assert curves.lines["AP (0.125)"] == [[], [50], [], [], [], [], [], []]


def test_the_usual_number_of_iterations_is_told_and_in_its_place(tmp_path: Path) -> None:
    runner.open_folder(tmp_path, "quick", [])
    for arm in EXPERIMENTS["figure-12"].arms:
        made_up(tmp_path, arm, 0, **({} if "property" in arm.label or arm.changes else {"fg_ari": 0.75}))
    text = report(tmp_path, "figure-12")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith(("| object", "| property"))]
    assert rows == [
        *(f"object discovery: T = {number}" for number in ("1", "2", "3 (usual)", "4", "5")),
        *(f"property prediction: T = {number}" for number in ("1", "2", "4", "5", "10 (usual)")),
    ]
    told = "object discovery: T = 3 (usual) above object discovery: T = 1: FG-ARI 75.0 and 50.0 %"
    assert f"- leans so: {told}" in text
    assert "{iters}" not in text


def test_at_the_scale_of_the_paper_both_tasks_have_three_iterations() -> None:
    labels = [arm.label for arm in _at_scale(EXPERIMENTS["figure-12"], "paper").arms]
    assert labels == [
        f"{task}: T = {number}"
        for task in ("object discovery", "property prediction")
        for number in ("1", "2", "3 (usual)", "4", "5")
    ]


def test_a_plot_of_one_arm_is_left_out_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It compares nothing."""
    runner.open_folder(tmp_path, "quick", [])
    plotted: list[list[str]] = []

    def plot(path: Path, panels: Sequence[Panel]) -> None:
        plotted.append([panel.title for panel in panels])
        Image.new("RGB", (40, 30)).save(path)

    monkeypatch.setattr(paper_report, "plot", plot)
    discovery, other, property_prediction, _ = EXPERIMENTS["figure-8"].arms
    for arm in (property_prediction, discovery, other):
        made_up(tmp_path, arm, 0)
        report(tmp_path, "figure-8")
    both = ["object discovery", "property prediction"]
    assert plotted == [both[1:], both, both[:1]]


def drawn(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> Axes:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    plots.plot(Path("plot.png"), [panel])
    ((ax,),) = (figure.axes for figure in figures)
    return ax


def test_bars_are_means_with_their_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"two seeds": [[10, 30], [50]], "nothing yet": [[], []], "below 0": [[-20, -40], [5]]}
    ax = drawn(Bars("title", "distance", "AP, %", ["inf", "1"], arms), monkeypatch)
    heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
    np.testing.assert_allclose(heights, [[20, 50], [np.nan, np.nan], [-30, 5]])
    seeds = [line.get_ydata().tolist() for line in ax.lines]
    assert seeds == [[10, 30], [50], [], [], [-20, -40], [5]]
    for bar, line in zip((bar for bars in ax.containers for bar in bars), ax.lines, strict=True):
        np.testing.assert_allclose(line.get_xdata(), bar.get_x() + bar.get_width() / 2)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["inf", "1"]
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("title", "distance", "AP, %")
    assert list(drawn(Bars("", "", "FG-ARI, %", ["FG-ARI"], {"a": [[50]]}), monkeypatch).get_xticks()) == []
    low, high = ax.get_ylim()
    assert low < -40
    assert high == 100


def test_curves_are_means_with_their_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {"two seeds": [[10, 30], [], [50]], "nothing yet": [[], [], []], "below 0": [[-1], [-2], [3]]}
    ax = drawn(Curves("", "iterations", "FG-ARI, %", [1, 2, 4], lines), monkeypatch)
    shown = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert shown == {"two seeds": [[1, 20], [4, 50]], "below 0": [[1, -1], [2, -2], [4, 3]]}
    band = ax.collections[0].get_paths()[0].vertices
    at_one = band[band[:, 0] == 1, 1]
    assert (at_one.min(), at_one.max()) == pytest.approx((20 - 200**0.5, 20 + 200**0.5))
    assert ax.get_ylim()[0] < -2
    above = drawn(Curves("", "", "", [1], {"a": [[50]]}), monkeypatch)
    assert above.get_ylim() == (0, 100)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (12_600, "3.5 h")],
)
def test_times_are_told_in_the_unit_that_fits(seconds: int, said: str) -> None:
    assert _hours(seconds) == said


def test_of_a_few_steps_nothing_follows(tmp_path: Path) -> None:
    runner.open_folder(tmp_path, "smoke", [])
    for arm in EXPERIMENTS["table-2"].arms[:2]:
        for seed in (0, 1):
            made_up(tmp_path, arm, seed, "smoke", fg_ari=0.1 if arm.changes else 0.5)
    text = report(tmp_path, "table-2", scale="smoke")
    assert "as published" not in text
    assert "nothing of how well it does" in text


def test_data_are_those_of_the_evaluations(tmp_path: Path) -> None:
    runner.open_folder(tmp_path, "quick", [])
    made_up(tmp_path, EXPERIMENTS["figure-4"].arms[0], 0, data="/data/clevr-with-masks")
    assert "- data, prepared: /data/clevr-with-masks" in report(tmp_path, "figure-4")


def test_folders_of_look_alikes_are_told(tmp_path: Path) -> None:
    runner.open_folder(tmp_path, "quick", [])
    folder = generate("tetrominoes", tmp_path / "tetrominoes", train=1, held_out=1).path
    made_up(tmp_path, EXPERIMENTS["figure-4"].arms[0], 0, data=str(folder))
    text = report(tmp_path, "figure-4")
    assert f"- data, folders of generated look-alikes: {folder}" in text.replace("\\", "")
    assert "data, prepared" not in text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("eval.json", "{}", "eval.json: damaged; the same command measures it again"),
        ("eval.json", '{"fg_ari": "x", "train_loss": 1.0, "data": "tetrominoes"}', "eval.json: damaged"),
        ("eval.json", '{"fg_ari": NaN, "train_loss": 1.0, "data": "tetrominoes"}', "eval.json: damaged"),
        ("eval.json", "", "eval.json: damaged"),
        ("env.json", "[]", "a machine that is not known, as env.json is damaged"),
        ("metrics.csv", "step,loss,lr,images_per_second\n50,1,1,nan\n", "0 s of training in all"),
        ("metrics.csv", "step\n" + "1" * 200_000, "0 s of training in all"),
        ("failure.json", "", "seed 0: no result: failed"),
        ("slots.png", "no picture", "slots.png: damaged; remove it, and the same command draws it again"),
    ],
)
def test_damage_is_told_and_stops_nothing(tmp_path: Path, name: str, content: str, said: str) -> None:
    runner.open_folder(tmp_path, "quick", [])
    run = made_up(tmp_path, EXPERIMENTS["figure-3"].arms[2], 0)
    (tmp_path / "runs" / "tetrominoes-seed-7").touch()
    (run / name).write_text(content)
    assert said in report(tmp_path, "figure-3")


def test_a_damaged_evaluation_or_one_of_other_data_is_made_again(tmp_path: Path) -> None:
    arm = EXPERIMENTS["figure-3"].arms[2]
    config = training_of(arm, "quick").config
    assert not runner._is_measured(tmp_path, DEFAULT, config)
    good: Mapping[str, Any] = whole(arm, "quick", DEFAULT)
    run_folder.write_json(tmp_path / "eval.json", dict(good))
    assert runner._is_measured(tmp_path, DEFAULT, config)
    run_folder.write_json(tmp_path / "eval.json", {**good, "data": "other/tetrominoes"})
    assert not runner._is_measured(tmp_path, DEFAULT, config)


def test_every_experiment_can_be_reported(tmp_path: Path) -> None:
    runner.open_folder(tmp_path, "quick", [])
    for experiment in EXPERIMENTS.values():
        for arm in experiment.arms:
            for seed in (0, 1):
                made_up(tmp_path, arm, seed)
    text = report(tmp_path, *EXPERIMENTS)
    assert "Not run" not in text
    assert "no result" not in text
    for name, experiment in EXPERIMENTS.items():
        if experiment.form != "pictures":
            with Image.open(tmp_path / "figures" / f"{name}.png") as plot:
                assert plot.width > 400
    assert cli.main(["paper", "--scale", "quick", "--out", str(tmp_path), "--report-only"]) == 0
    assert json.loads((tmp_path / "paper.json").read_bytes())["experiments"] == list(EXPERIMENTS)


def test_a_run_whose_weights_are_gone_is_reported_all_the_same(tmp_path: Path) -> None:
    """As those of docs/paper-quick, of which evaluations and pictures of the report are kept."""
    (arm, *_) = (arm for arm in EXPERIMENTS["figure-3"].arms if arm.label == "Tetrominoes")
    runner.open_folder(tmp_path, "quick", [])
    run = made_up(tmp_path, arm, 0)
    before = report(tmp_path, "figure-3")
    assert before.count("![Tetrominoes, seed 0: what each") == 2
    for file in ("model.safetensors", "slots.png", "iterations.png"):
        (run / file).unlink()
    assert report(tmp_path, "figure-3") == before
    (run / "eval.json").unlink()
    assert "Tetrominoes, seed 0: no result: not trained to its end" in report(tmp_path, "figure-3")
