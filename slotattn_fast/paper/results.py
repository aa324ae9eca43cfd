"""What the folder of `slotattn paper` holds, by arm and setting, and what it says of the paper's findings."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slotattn_fast.paper.bases import Scale
from slotattn_fast.paper.evaluations import Result, read_evaluation
from slotattn_fast.paper.experiments import Arm, Claim, Experiment, Point
from slotattn_fast.paper.runner import FAILURE
from slotattn_fast.paper.trainings import Training, setting_of, training_of
from slotattn_fast.report.tables import DISTANCES, failed_runs, mean_and_deviation, mean_text
from slotattn_fast.train import run_folder
from slotattn_fast.train.config import TrainConfig
from slotattn_fast.train.errors import RunError
from slotattn_fast.train.evaluation import readings
from slotattn_fast.train.setting import Setting


@dataclass(frozen=True)
class Found:
    """What there is of an arm."""

    arm: Arm
    training: Training
    results: Mapping[Setting, Mapping[int, Result]]
    """Evaluations by the settings of the arm, then by seed."""
    runs: Mapping[int, Path]
    """Of every seed that was begun."""
    broken: Mapping[int, str]
    """Why a seed has no result."""

    def values(self, setting: Setting, distance: str | None = None) -> dict[int, float | None]:
        """Percent, by seed: FG-ARI, or AP at `distance`, or the attention's FG-ARI."""
        return {seed: percent(self.arm, result, distance) for seed, result in self.results[setting].items()}

    def outliers(self) -> dict[int, float]:
        """Seeds that failed, as `report.tables.FAILED` says, and how many times the lowest training loss theirs is."""
        every = (result for results in self.results.values() for result in results.items())
        return failed_runs({seed: result["train_loss"] for seed, result in every})


def percent(arm: Arm, result: Result, distance: str | None = None) -> float | None:
    """Of an evaluation. `distance` None is the first, inf."""
    if arm.measure == "attention":
        score = result["attention_ari"]
    elif "ap" in result:
        score = result["ap"][distance or DISTANCES[0]]
    else:
        score = result["fg_ari"]
    return None if score is None else 100 * float(score)


def is_property(training: Training) -> bool:
    return training.config.task == "property"


def columns(found: Found) -> tuple[str, ...]:
    """What a score of the arm is of."""
    if found.arm.measure == "attention":
        return ("attention ARI",)
    return DISTANCES if is_property(found.training) else ("FG-ARI",)


def collect(experiment: Experiment, scale: Scale, out: Path, data: Path | None = None) -> list[Found]:
    """Of each arm, the evaluations that are in the folder."""
    found = []
    for arm in experiment.arms:
        training = training_of(arm, scale, data)
        runs = _runs(training, out)
        settings = [setting_of(setting, data, training.config) for setting in arm.settings]
        results: dict[Setting, dict[int, Result]] = {setting: {} for setting in settings}
        broken = {}
        for seed, run in runs.items():
            for setting in settings:
                try:
                    if (run / setting.file()).exists():
                        results[setting][seed] = read_evaluation(run / setting.file(), training.config.task)
                except RunError as error:
                    broken[seed] = str(error)
            if (run / FAILURE).exists():
                broken[seed] = _why(run / FAILURE)
            elif not run_folder.is_complete(run) and not any(run.glob("eval*.json")):  # whose weights may be gone
                broken[seed] = "not trained to its end"
        found.append(Found(arm, training, results, runs, broken))
    return found


def _why(failure: Path) -> str:
    try:
        return str(run_folder.read_json(failure).get("error"))
    except RunError:
        return "failed"


def _runs(training: Training, out: Path) -> dict[int, Path]:
    pattern = re.compile(re.escape(training.name) + r"-seed-([0-9]+)")
    matches = [(pattern.fullmatch(path.name), path) for path in (out / "runs").iterdir()]
    return dict(sorted((int(match[1]), run) for match, run in matches if match and (run / "config.json").exists()))


def score(values: Mapping[int, float | None]) -> str:
    """Mean and standard deviation over the seeds."""
    return mean_text(list(values.values()))


AS_PUBLISHED, LEANS, NOT_SO, NO_RESULT = "as published", "leans so", "not so", "no result"


@dataclass(frozen=True)
class Verdict:
    """On a claim."""

    word: str
    """One of the four."""
    text: str


def verdict(claim: Claim, found: Sequence[Found], data: Path | None = None) -> Verdict:
    """As published if, with two seeds or more, every seed of the one is above every seed of the other.

    Of one training under two settings, every seed that has both is compared with itself. Of two trainings, seeds that
    failed count too; those without a score, as they diverged or are not at their end, are told, and where the better
    has any it is not above.
    """
    better_of, worse_of = (_of(point, found) for point in (claim.better, claim.worse))
    better, worse = (_values(point, found, claim.distance, data) for point in (claim.better, claim.worse))
    paired = better_of.training == worse_of.training
    unscored: dict[str, set[int]] = {}
    if paired:
        seeds = better.keys() & worse.keys()
        better, worse = ({seed: values[seed] for seed in sorted(seeds)} for values in (better, worse))
    else:
        unscored = {of.arm.label: of.runs.keys() - of_it for of, of_it in ((better_of, better), (worse_of, worse))}
    without = "".join(
        f"; {len(seeds)} seed{'s' * (len(seeds) != 1)} of {label} without a result"
        for label, seeds in unscored.items()
        if seeds
    )
    if not better or not worse:
        return Verdict(NO_RESULT, _told(claim) + without)
    above = all(better[seed] > worse[seed] for seed in better) if paired else min(better.values()) > max(worse.values())
    above = above and not unscored.get(better_of.arm.label)
    means = [mean_and_deviation(list(values.values())).mean for values in (better, worse)]
    counts = [len(better), len(worse)]
    word = AS_PUBLISHED if above and min(counts) > 1 else LEANS if means[0] > means[1] else NOT_SO
    number = " and ".join(map(str, dict.fromkeys(counts)))
    metric = f"AP ({claim.distance})" if is_property(better_of.training) else "FG-ARI"
    return Verdict(
        word,
        f"{_told(claim)}: {metric} {score(better)} and {score(worse)} %, {number} seed{'s' * (number != '1')}{without}",
    )


def _told(claim: Claim) -> str:
    better, worse = claim.better, claim.worse
    if better.arm != worse.arm:
        return f"{better.arm} above {worse.arm}"
    return f"{better.arm}: {better.setting.iters} iterations above {worse.setting.iters}"


def _of(point: Point, found: Sequence[Found]) -> Found:
    return next(each for each in found if each.arm.label == point.arm)


def _values(point: Point, found: Sequence[Found], distance: str, data: Path | None) -> dict[int, float]:
    of = _of(point, found)
    values = of.values(setting_of(point.setting, data, of.training.config), distance)
    return {seed: value for seed, value in values.items() if value is not None}


def seconds(run: Path, config: TrainConfig) -> float | None:
    """That training took, by the speeds in metrics.csv; None without them. What a kill lost is not counted."""
    rows = readings(run)
    if not rows or not all(row.images_per_second > 0 for row in rows):
        return None
    return sum(row.steps * config.batch_size / row.images_per_second for row in rows)


def _commit(commit: str | None) -> str:
    """As env.json has it, but short."""
    return "no checkout" if commit is None else f"commit {commit[:7]}{'-dirty' * commit.endswith('-dirty')}"


def machine(run: Path) -> str:
    """Where a run was made, and with what."""
    try:
        env = run_folder.read_json(run / "env.json")
        threads = f", {env['threads']} thread{'s' * (env['threads'] != 1)}" if env["device"] == "cpu" else ""
        return (
            f"{env['device_name']}{threads}, torch {env['torch']}, slotattn-fast {env['slotattn_fast']} "
            f"({_commit(env['commit'])})"
        )
    except (RunError, KeyError, TypeError, AttributeError):
        return "a machine that is not known, as env.json is damaged"
