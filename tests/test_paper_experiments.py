"""The experiments as data: what they train can be built at every scale, and the commands that are told make it."""

import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest

from slotattn_fast import cli
from slotattn_fast.data.prepare import generate
from slotattn_fast.paper.bases import SEEDS, Scale
from slotattn_fast.paper.experiments import EXPERIMENTS, Arm
from slotattn_fast.paper.trainings import Training, command, evaluations, jobs, look_alikes, training_of
from slotattn_fast.report.tables import DISTANCES
from slotattn_fast.train.setting import DEFAULT, Setting
from slotattn_fast.train.tasks import task_of

SCALES: tuple[Scale, ...] = get_args(Scale)
EVERY_SCALE = pytest.mark.parametrize("scale", SCALES)
ARMS = [(name, arm) for name, experiment in EXPERIMENTS.items() for arm in experiment.arms]


def every_training(scale: Scale) -> list[Training]:
    return list({training.name: training for _, arm in ARMS for training in [training_of(arm, scale)]}.values())


@EVERY_SCALE
def test_models_can_be_built(scale: Scale) -> None:
    for training in every_training(scale):
        assert task_of(training.config).model_config().iters > 0


@EVERY_SCALE
def test_commands_make_the_trainings(scale: Scale) -> None:
    for training in every_training(scale):
        words = shlex.split(command(training))
        made = cli._parse(words[1:])
        assert isinstance(made, cli.Train)
        wanted = training.config
        got = made.config()
        assert replace(got, model={}) == replace(wanted, model={})
        assert task_of(got).model_config() == task_of(wanted).model_config()


@EVERY_SCALE
def test_a_name_is_one_training(scale: Scale) -> None:
    by_name: dict[str, object] = {}
    for _, arm in ARMS:
        training = training_of(arm, scale)
        assert by_name.setdefault(training.name, training.config) == training.config
    configs = [asdict(training.config) for training in every_training(scale)]
    assert all(a != b for i, a in enumerate(configs) for b in configs[:i])


def test_the_paper_scale_has_the_papers_configurations() -> None:
    trainings = {t.name: t.config for t in every_training("paper")}
    clevr6 = trainings["clevr6"]
    assert (clevr6.steps, clevr6.batch_size, clevr6.lr, clevr6.max_objects) == (500_000, 64, 4e-4, 6)
    assert trainings["clevr6-aggregation-sum"].model == {**clevr6.model, "aggregation": "sum"}
    assert trainings["clevr10-properties-decay-none"].decay_steps is None
    assert SEEDS["paper"] == 5


@EVERY_SCALE
@pytest.mark.parametrize("name", ["figure-9", "figure-23"])
def test_what_needs_gradients_through_all_iterations_is_compared_with_what_has_them(name: str, scale: Scale) -> None:
    models = [task_of(training_of(arm, scale).config).model_config() for arm in EXPERIMENTS[name].arms]
    assert not any(model.implicit for model in models)


def test_claims_are_about_what_is_measured() -> None:
    for name, experiment in EXPERIMENTS.items():
        arms = {arm.label: arm for arm in experiment.arms}
        assert len(arms) == len(experiment.arms), name
        for claim in experiment.claims:
            assert claim.distance in DISTANCES
            for point in (claim.better, claim.worse):
                assert point.setting in arms[point.arm].settings, (name, point)


def test_as_many_published_scores_as_columns() -> None:
    for name, arm in ARMS:
        if arm.published:
            properties = training_of(arm, "paper").config.task == "property" and arm.measure == "score"
            assert len(arm.published) == (len(DISTANCES) if properties else 1), name


def test_trainings_are_shared() -> None:
    made = jobs(["table-2", "figure-2", "figure-3"], "quick", 2)
    assert len(made) == 2 * len({job.training.name for job in made}) == 2 * 6
    (clevr6,) = (job for job in made if job.training.name == "clevr6" and job.seed == 0)
    assert len(clevr6.measured) == 1 + 7 + 7  # as trained, and two curves
    assert clevr6.drawn == (DEFAULT,)
    assert [job.seed for job in made] == [0] * 6 + [1] * 6
    assert not made[-1].drawn
    (alone,) = jobs(["figure-3"], "quick", 1, only=["tetrominoes"])
    assert alone.training.name == "tetrominoes"


def test_prepared_data_takes_the_place_of_look_alikes(tmp_path: Path) -> None:
    (tmp_path / "clevr").mkdir()
    arm = Arm("", "clevr10-properties")
    assert training_of(arm, "quick", tmp_path).config.data == "clevr"
    (tmp_path / "clevr" / "manifest.json").touch()
    config = training_of(arm, "quick", tmp_path).config
    assert (config.data, config.scenes) == (str(tmp_path / "clevr"), None)
    arms = EXPERIMENTS["attention-ari"].arms
    published = "see `slotattn data info clevr-with-masks` for the published"
    assert look_alikes(arms, "quick", tmp_path) == {"clevr-with-masks": published}
    shutil.rmtree(tmp_path / "clevr")
    generate("clevr", tmp_path / "clevr", train=1, held_out=1)
    size = "its folder has images of another size"  # quick takes 48x48
    assert look_alikes(arms, "quick", tmp_path) == {"clevr": size, "clevr-with-masks": published}
    drawn = "`slotattn data generate` made its folder"
    assert look_alikes(arms, "paper", tmp_path) == {"clevr": drawn, "clevr-with-masks": published}
    assert training_of(arm, "quick", tmp_path) == training_of(arm, "quick")
    assert training_of(arm, "paper", tmp_path).config.data == str(tmp_path / "clevr")


def test_evaluations_are_told_as_commands() -> None:
    settings = [DEFAULT, Setting(iters=1), Setting(iters=2), Setting(iters=5, num_slots=11, max_objects=10)]
    assert evaluations(settings) == [
        "slotattn eval RUN --iters 1 2",
        "slotattn eval RUN --num-slots 11 --max-objects 10 --iters 5",
    ]
    for line in evaluations([*settings, Setting(data="a b/c")]):
        assert isinstance(cli._parse(shlex.split(line)[1:]), cli.Eval)
