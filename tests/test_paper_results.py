"""What is said of results: scores over seeds, verdicts on the paper's findings, failed seeds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slotattn_fast.paper.experiments import Arm, Claim, Point
from slotattn_fast.paper.results import Found, Verdict, machine, score, seconds, verdict
from slotattn_fast.paper.trainings import training_of
from slotattn_fast.report.tables import DISTANCES
from slotattn_fast.train.setting import DEFAULT, Setting


def found(label: str, scores: dict[int, float | None], setting: Setting = DEFAULT, **arm: Any) -> Found:
    made = Arm(label, "tetrominoes", {"scale": float(ord(label[0]))}, settings=(setting,), **arm)
    results = {seed: {"fg_ari": value, "train_loss": 1.0} for seed, value in scores.items()}
    return Found(made, training_of(made, "quick"), {setting: results}, {}, {})


def test_score_is_mean_and_deviation() -> None:
    assert score({0: 90.0, 1: 92.0}) == "91.0 +- 1.4"
    assert score({0: 90.0}) == "90.0"
    assert score({0: 90.0, 1: None}) == score({}) == "-"
    assert score({0: -0.01}) == "0.0"


@pytest.mark.parametrize(
    ("better", "worse", "word"),
    [
        ({0: 0.9, 1: 0.8}, {0: 0.7, 1: 0.79}, "as published"),
        ({0: 0.9, 1: 0.8}, {0: 0.7, 1: 0.81}, "leans so"),
        ({0: 0.7, 1: 0.7}, {0: 0.7, 1: 0.7}, "not so"),
        ({0: 0.7}, {0: 0.9, 1: 0.6}, "not so"),
        ({0: 0.7}, {}, "no result"),
        ({0: 0.7}, {0: 0.6}, "leans so"),  # one seed
        ({0: 0.7, 1: 0.8}, {0: 0.6}, "leans so"),
    ],
)
def test_verdicts_on_two_arms(better: dict[int, float | None], worse: dict[int, float | None], word: str) -> None:
    claim = Claim(Point("a"), Point("b"))
    assert verdict(claim, [found("b", worse), found("a", better)]).word == word


def test_a_verdict_tells_the_numbers() -> None:
    claim = Claim(Point("mean"), Point("sum"))
    assert verdict(claim, [found("mean", {0: 0.9}), found("sum", {0: 0.5})]) == Verdict(
        "leans so", "mean above sum: FG-ARI 90.0 and 50.0 %, 1 seed"
    )
    assert verdict(claim, [found("mean", {0: 0.9, 1: 0.8}), found("sum", {0: 0.5})]).text.endswith(", 2 and 1 seeds")


def test_a_seed_without_a_result_is_told_and_is_not_above() -> None:
    claim = Claim(Point("a"), Point("b"))
    best, worst = found("a", {0: 0.9, 1: 0.8}), found("b", {0: 0.5, 1: 0.4})
    begun = {seed: Path(f"seed-{seed}") for seed in range(4)}
    said = verdict(claim, [replace(best, runs=begun), worst])
    assert said.word == "leans so"
    assert said.text.endswith(" %, 2 seeds; 2 seeds of a without a result")
    said = verdict(claim, [best, replace(worst, runs={seed: begun[seed] for seed in range(3)})])
    assert said.word == "as published"
    assert said.text.endswith(" %, 2 seeds; 1 seed of b without a result")
    said = verdict(claim, [best, replace(found("b", {}), runs={0: begun[0], 1: begun[1]})])
    assert said == Verdict("no result", "a above b; 2 seeds of b without a result")
    scored = {0: begun[0], 1: begun[1]}  # whose weights may be gone
    assert (
        verdict(claim, [replace(best, runs=scored, broken={1: "not trained to its end"}), worst]).word == "as published"
    )


def test_one_arm_is_compared_seed_by_seed() -> None:
    arm = Arm("T", "tetrominoes", settings=(Setting(iters=1), Setting(iters=3)))
    scores = {1: (0.5, 0.8), 3: (0.6, 0.9)}  # seed 1 with one iteration is above seed 0 with three
    results = {
        setting: {seed: {"fg_ari": value, "train_loss": 1.0} for seed, value in enumerate(scores[setting.iters or 0])}
        for setting in arm.settings
    }
    claim = Claim(Point("T", arm.settings[1]), Point("T", arm.settings[0]))
    said = verdict(claim, [Found(arm, training_of(arm, "quick"), results, {}, {})])
    assert said.word == "as published"
    assert said.text == "T: 3 iterations above 1: FG-ARI 75.0 +- 21.2 and 65.0 +- 21.2 %, 2 seeds"


def test_a_seed_that_one_setting_lacks_is_not_compared() -> None:
    arm = Arm("T", "tetrominoes", settings=(Setting(iters=1), Setting(iters=3)))
    less, more = (
        {seed: {"fg_ari": value, "train_loss": 1.0} for seed, value in of.items()}
        for of in ({0: 0.5, 1: 0.9, 2: 0.5}, {0: 0.6, 2: 0.7})
    )
    both = Found(arm, training_of(arm, "quick"), dict(zip(arm.settings, (less, more), strict=True)), {}, {})
    said = verdict(Claim(Point("T", arm.settings[1]), Point("T", arm.settings[0])), [both])
    assert said.word == "as published"
    assert said.text.endswith(": FG-ARI 65.0 +- 7.1 and 50.0 +- 0.0 %, 2 seeds")


def test_ap_of_a_claim_is_at_its_distance() -> None:
    def of(label: str, ap: list[float]) -> Found:
        arm = Arm(label, "clevr10-properties")
        result = {"ap": dict(zip(DISTANCES, ap, strict=True)), "attention_ari": 0.5, "train_loss": 1.0}
        return Found(arm, training_of(arm, "quick"), {DEFAULT: {0: result}}, {}, {})

    both = [of("a", [0.9, 0.5, 0.3, 0.1, 0]), of("b", [0.8, 0.5, 0.3, 0.2, 0])]
    assert verdict(Claim(Point("a"), Point("b")), both).word == "leans so"
    assert verdict(Claim(Point("a"), Point("b"), "0.25"), both).word == "not so"


def test_a_seed_of_a_much_higher_loss_has_failed() -> None:
    made = found("a", {0: 0.9, 1: 0.1, 2: 0.9})
    made.results[DEFAULT][1]["train_loss"] = 2.5  # type: ignore[index]
    assert made.outliers() == {1: 2.5}
    others = {seed: {**result, "fg_ari": 0.5} for seed, result in made.results[DEFAULT].items()}
    first_of_one_seed = {DEFAULT: {0: made.results[DEFAULT][0]}, Setting(iters=5): others}
    assert replace(made, results=first_of_one_seed).outliers() == {1: 2.5}
    for seed in made.results[DEFAULT]:
        made.results[DEFAULT][seed]["train_loss"] = 0.0  # type: ignore[index]
    assert made.outliers() == {}


def test_seconds_are_those_of_all_rows(tmp_path: Path) -> None:
    config = training_of(Arm("", "tetrominoes"), "quick").config
    assert seconds(tmp_path, config) is None
    (tmp_path / "metrics.csv").write_text("step,loss,lr,images_per_second\n50,1,1,100.0\n100,1,1,200.0\n")
    assert seconds(tmp_path, config) == pytest.approx(50 * 16 / 100 + 50 * 16 / 200)


COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    ("commit", "told"),
    [(COMMIT, "commit 0123456"), (f"{COMMIT}-dirty", "commit 0123456-dirty"), (None, "no checkout")],
)
def test_the_commit_of_a_run_is_told_with_what_differed(tmp_path: Path, commit: str | None, told: str) -> None:
    env = {"device": "cpu", "device_name": "CPU", "threads": 2, "torch": "2.13", "slotattn_fast": "0.1"}
    (tmp_path / "env.json").write_text(json.dumps({**env, "commit": commit}))
    assert machine(tmp_path) == f"CPU, 2 threads, torch 2.13, slotattn-fast 0.1 ({told})"
