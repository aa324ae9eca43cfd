"""The report of `slotattn paper`: every experiment beside what was published, as a page and as Markdown."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from PIL import UnidentifiedImageError

from slotattn_fast.atomic import write_text
from slotattn_fast.data.catalogue import GENERATED
from slotattn_fast.paper.bases import Scale
from slotattn_fast.paper.document import (
    Block,
    Bullets,
    Commands,
    Heading,
    Link,
    Paragraph,
    Picture,
    Table,
    to_html,
    to_markdown,
)
from slotattn_fast.paper.experiments import EXPERIMENTS, Experiment, Point
from slotattn_fast.paper.forms import (
    iteration_curves,
    iteration_table,
    object_curves,
    object_table,
    score_bars,
    score_tables,
)
from slotattn_fast.paper.plots import Bars, Panel, plot
from slotattn_fast.paper.results import AS_PUBLISHED, NO_RESULT, Found, Verdict, collect, machine, seconds, verdict
from slotattn_fast.paper.runner import pictures
from slotattn_fast.paper.small_pictures import copy
from slotattn_fast.paper.trainings import command, evaluations, is_look_alike, training_of
from slotattn_fast.train.tasks import task_of

Spent = Mapping[Path, float | None]
"""Seconds of training, by run; None where they are not known."""

_TITLE = "Slot Attention, the paper's experiments"
_SAYS: dict[Scale, str] = {
    "smoke": "A few steps of tiny models: this shows that every experiment runs, and nothing of how well it does.",
    "quick": "Small images and models, trained for minutes: directions compare with the paper's, scores do not. Set "
    "predictors have 10 iterations, and gradients through the last alone where nothing else is said.",
    "paper": "The paper's sizes and steps.",
}


def write_report(names: Iterable[str], out: Path, scale: Scale, data: Path | None = None) -> list[Path]:
    """Of these experiments, from what is in `out`: report.html, report.md, and figures/. Returns the first two."""
    (out / "figures").mkdir(exist_ok=True)
    experiments = {name: _at_scale(EXPERIMENTS[name], scale) for name in names}
    every = {name: collect(experiment, scale, out, data) for name, experiment in experiments.items()}
    verdicts = {name: _verdicts(experiments[name], found, scale, data) for name, found in every.items()}
    runs = {run: each.training.config for found in every.values() for each in found for run in each.runs.values()}
    spent = {run: seconds(run, config) for run, config in runs.items()}
    blocks = _beginning(every, verdicts, spent, scale)
    for name, found in every.items():
        blocks += _experiment(name, found, verdicts[name], spent, out)
    written = [out / "report.html", out / "report.md"]
    for path, text in zip(written, (to_html(blocks, _TITLE), to_markdown(blocks, out)), strict=True):
        write_text(path, text)
    return written


def _at_scale(experiment: Experiment, scale: Scale) -> Experiment:
    """Where a label leaves T to the scale: the same with it, and with the arms of each task in its order."""
    if not any("{iters}" in arm.label for arm in experiment.arms):
        return experiment
    iters = {arm.label: task_of(training_of(arm, scale).config).model_config().iters for arm in experiment.arms}

    def label(of: str) -> str:
        return of.format(iters=iters[of])

    def named(point: Point) -> Point:
        return replace(point, arm=label(point.arm))

    arms = sorted(experiment.arms, key=lambda arm: (arm.base, iters[arm.label]))
    return replace(
        experiment,
        arms=tuple(replace(arm, label=label(arm.label)) for arm in arms),
        claims=tuple(
            replace(claim, better=named(claim.better), worse=named(claim.worse)) for claim in experiment.claims
        ),
    )


def _verdicts(experiment: Experiment, found: Sequence[Found], scale: Scale, data: Path | None) -> list[Verdict]:
    """Of what was run. Of a few steps nothing follows."""
    if scale == "smoke":
        return []
    run = {each.arm.label for each in found if each.runs}
    claims = (claim for claim in experiment.claims if {claim.better.arm, claim.worse.arm} <= run)
    return [verdict(claim, found, data) for claim in claims]


def _beginning(
    every: Mapping[str, list[Found]], verdicts: Mapping[str, list[Verdict]], spent: Spent, scale: Scale
) -> list[Block]:
    machines = Counter(map(machine, spent))
    rows: list[Sequence[str | Link]] = [("experiment", "source", "findings as published")]
    for name in every:
        words = [each.word for each in verdicts[name] if each.word != NO_RESULT]
        counted = f"{words.count(AS_PUBLISHED)} of {len(words)}" if words else ""
        rows.append((Link(f"{name}: {EXPERIMENTS[name].title}", name), EXPERIMENTS[name].source, counted))
    if scale == "smoke":
        rows = [row[:-1] for row in rows]
    return [
        Heading(_TITLE, 1),
        Paragraph(
            f"Locatello et al. (2020), Object-Centric Learning with Slot Attention. Scale {scale}: {_SAYS[scale]} "
            f"Written on {date.today().isoformat()} by slotattn paper --scale {scale}."
        ),
        Paragraph(
            "Scores are in percent, mean +- standard deviation over the seeds. FG-ARI is of held-out scenes, their "
            "background left out; AP of predicted sets at the distances inf to 0.125. A seed has failed if its "
            "training loss ends at more than twice the lowest of its arm."
        ),
        Bullets(
            [
                *(f"{count} run{'s' * (count != 1)} on {where}" for where, count in machines.items()),
                f"{_hours(sum(filter(None, spent.values())))} of training in all",
                *_data(every),
            ]
        ),
        Table(rows, words=2),
    ]


def _data(every: Mapping[str, list[Found]]) -> list[str]:
    """As the evaluations tell it."""
    results = (by_seed for found in every.values() for each in found for by_seed in each.results.values())
    used = dict.fromkeys(str(result["data"]) for by_seed in results for result in by_seed.values())
    folders = {name: is_look_alike(Path(name)) for name in used if name not in GENERATED}
    kinds = {
        "generated look-alikes of": [name for name in used if name in GENERATED],
        "folders of generated look-alikes": [name for name, alike in folders.items() if alike],
        "prepared": [name for name, alike in folders.items() if not alike],
    }
    return [f"data, {kind}: {', '.join(names)}" for kind, names in kinds.items() if names]


def _experiment(name: str, found: Sequence[Found], verdicts: Sequence[Verdict], spent: Spent, out: Path) -> list[Block]:
    experiment = EXPERIMENTS[name]
    blocks: list[Block] = [
        Heading(f"{name}: {experiment.title}", 2, name),
        Paragraph(
            f"{experiment.source}. The paper: {experiment.finding}{' ' * bool(experiment.note)}{experiment.note}"
        ),
    ]
    if missing := [each.arm.label for each in found if not each.runs]:
        blocks.append(Paragraph(f"Not run: {'; '.join(missing)}."))
    found = [each for each in found if each.runs]
    if not found:
        return blocks
    if verdicts:
        blocks.append(Bullets([f"{each.word}: {each.text}" for each in verdicts]))
    panels: Sequence[Panel] = ()
    match experiment.form:
        case "scores":
            blocks += score_tables(experiment, found)
            bars = score_bars(found)
            # A panel of one arm compares nothing.
            panels = [panel for panel in bars if isinstance(panel, Bars) and len(panel.arms) > 1] or bars
        case "iterations":
            blocks.append(iteration_table(found))
            panels = iteration_curves(found)
        case "objects":
            blocks.append(object_table(found))
            panels = object_curves(found)
        case "pictures":
            blocks += _pictures(name, found, out)
    if panels:
        figure = out / "figures" / f"{name}.png"
        plot(figure, panels)
        blocks.append(Picture(figure, f"{experiment.title}. Ours: means, with each seed or the standard deviation."))
    if troubles := _troubles(found):
        blocks.append(Bullets(troubles))
    return [*blocks, Commands("Commands, and how long each took", _commands(found, spent))]


def _pictures(name: str, found: Sequence[Found], out: Path) -> list[Block]:
    blocks: list[Block] = []
    for each in found:
        seed, run = next(iter(each.runs.items()))
        for setting in each.results:
            used = setting.suffix().replace("-", " ").strip()
            for kind, what in (("slots", "what each slot holds"), ("iterations", "what each iteration attends to")):
                source = pictures(out, run, setting) / f"{kind}.png"
                path = out / "figures" / f"{name}-{source.parent.name}-{kind}.webp"
                try:
                    if source.exists():
                        copy(source, path)
                    elif not path.exists():  # what an earlier report made of it will do
                        continue
                except UnidentifiedImageError:
                    blocks.append(Paragraph(f"{source}: damaged; remove it, and the same command draws it again."))
                    continue
                caption = f"{each.arm.label}{f' ({used})' * bool(used)}, seed {seed}: {what}"
                blocks.append(Picture(path, caption))
    return blocks


def _troubles(found: Sequence[Found]) -> list[str]:
    lines = []
    for each in found:
        lines += [f"{each.arm.label}, seed {seed}: no result: {why}" for seed, why in each.broken.items()]
        lines += [
            f"{each.arm.label}, seed {seed}: failed: its training loss is {times:.1f} times the lowest"
            for seed, times in each.outliers().items()
        ]
    return lines


def _commands(found: Sequence[Found], spent: Spent) -> list[str]:
    lines = []
    by_training: dict[str, list[Found]] = {}
    for each in found:
        by_training.setdefault(each.training.name, []).append(each)
    for arms in by_training.values():
        training, runs = arms[0].training, arms[0].runs
        known = ", ".join(map(_hours, filter(None, (spent[run] for run in runs.values()))))
        lines.append(
            f"# {', '.join(each.arm.label for each in arms)}: {training.config.steps} steps"
            + f"; {known}" * bool(known)
        )
        lines.append(command(training))
        lines += evaluations(setting for each in arms for setting in each.results)
    return lines


def _hours(of: float) -> str:
    return f"{of:.0f} s" if of < 120 else f"{of / 60:.0f} min" if of < 7200 else f"{of / 3600:.1f} h"
