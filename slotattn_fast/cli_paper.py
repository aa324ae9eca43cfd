"""`slotattn paper`: the paper's experiments listed, run and reported."""

import difflib
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from slotattn_fast.cli_errors import UsageError
from slotattn_fast.paper.bases import BASES, SEEDS, Scale
from slotattn_fast.paper.experiments import EXPERIMENTS
from slotattn_fast.train.config import Device

_MOST_SEEDS = 1000
"""More is a slip of the keyboard."""


@dataclass(frozen=True)
class Paper:
    """List the paper's experiments; with --scale, run them and report them beside what was published.

    The same command goes on where it was stopped, and adds seeds; several processes may share the folder.
    """

    experiments: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="[NAME ...]", help="Experiments, by the names of the list.", help_behavior_hint="(default: all)"),
    ] = ()
    scale: Annotated[
        Scale | None,
        arg(
            metavar="{smoke,quick,paper}",
            help="smoke: a few steps of each, for the plumbing, minutes on 2 CPU cores. quick: small models of small "
            "images, for the direction of each, a night on a CPU. paper: in full, weeks on a GPU.",
            help_behavior_hint="(default: list and run nothing)",
        ),
    ] = None
    only: Annotated[
        tuple[str, ...],
        arg(
            metavar="NAME [NAME ...]",
            help=f"Leave out what is not trained as one of these: {', '.join(BASES)}.",
            help_behavior_hint="(default: all)",
        ),
    ] = BASES
    seeds: Annotated[
        int | None,
        arg(
            metavar="N",
            help_behavior_hint=f"(default: {', '.join(f'{number} of {scale}' for scale, number in SEEDS.items())})",
        ),
    ] = None
    """Seeds of each training, from 0."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: paper-SCALE)")] = None
    """Folder of runs and report."""
    data: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: look-alikes are drawn)")] = None
    """Folder of prepared folders, each under the name of its data set: these are used where they are there."""
    device: Annotated[Device | None, arg(metavar="{auto,cpu,cuda}", help_behavior_hint="(default: auto)")] = None
    """Where to train."""
    report_only: Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")] = False
    """Run nothing, and write the report of what is there."""


def run_paper(command: Paper) -> int:
    """Runs the command and returns its exit code: 1 if some run failed, 128 + the signal if stopped.

    Raises `UsageError`, `RunError` or OSError.
    """
    if unknown := [name for name in command.experiments if name not in EXPERIMENTS]:
        raise UsageError("; ".join(map(_unknown, unknown)))
    if others := [name for name in command.only if name not in BASES]:
        raise UsageError(f"only: got {', '.join(map(repr, others))}, expected some of {', '.join(BASES)}")
    names = [name for name in EXPERIMENTS if name in command.experiments or not command.experiments]
    if command.scale is None:
        if given := _given(command, "only", "seeds", "out", "data", "device", "report_only"):
            raise UsageError(
                f"scale: got none, which lists the experiments and takes no {given}; add --scale, or leave that out"
            )
        print("\n".join(_listed(names)))
        return 0
    return _run(command, names, command.scale)


def _given(command: Paper, *names: str) -> str:
    """Those of these options that are not as they are by default."""
    given = [field.name for field in fields(command) if getattr(command, field.name) != field.default]
    return ", ".join(f"--{name.replace('_', '-')}" for name in names if name in given)


def _unknown(name: str) -> str:
    begun = [known for known in EXPERIMENTS if known.startswith(name)]
    near = begun or difflib.get_close_matches(name, EXPERIMENTS, 4, 0.5)
    told = f", near: {', '.join(near)}" if near else ""
    return f"no experiment {name!r}{told}; `slotattn paper` lists all"


def _listed(names: list[str]) -> list[str]:
    from slotattn_fast.paper.trainings import jobs

    width = max(map(len, names))
    lines = []
    for name in names:
        experiment = EXPERIMENTS[name]
        steps = [job.training.config.steps for job in jobs([name], "paper", 1)]
        count = len(steps)
        trained = f"{count} training{'s' * (count != 1)} of {' or '.join(f'{n:,}' for n in sorted(set(steps)))} steps"
        lines.append(f"{name:{width}}  {experiment.title} ({experiment.source}): {trained}")
    return [*lines, "Some share trainings. Run them with --scale; see `slotattn paper --help`."]


def _run(command: Paper, names: list[str], scale: Scale) -> int:
    from slotattn_fast.paper.report import write_report
    from slotattn_fast.paper.runner import asked_before, open_folder, run_all
    from slotattn_fast.paper.trainings import chosen, jobs, look_alikes
    from slotattn_fast.train.errors import Stopped

    seeds = SEEDS[scale] if command.seeds is None else command.seeds
    if not 1 <= seeds <= _MOST_SEEDS:
        raise UsageError(f"seeds: got {seeds}, expected 1 to {_MOST_SEEDS}")
    if command.data is not None and not command.data.is_dir():
        raise UsageError(f"data: got {command.data}, which is no folder")
    out = command.out or Path(f"paper-{scale}")
    if command.report_only:
        if given := _given(command, "only", "seeds", "device"):
            raise UsageError(f"report_only: the report is of all that is there and takes no {given}; leave that out")
        asked = [name for name in asked_before(out, scale) if name in names]
        print(*write_report(asked, out, scale, command.data), sep="\n")
        return 0
    todo = jobs(names, scale, seeds, command.data, command.only)
    if not todo:
        raise UsageError(f"only: got {', '.join(command.only)}, which none of {', '.join(names)} trains")
    asked = open_folder(out, scale, names)
    arms = (arm for _, arm in chosen(names, scale, command.only))
    for name, why in look_alikes(arms, scale, command.data).items():
        print(f"{name}: a generated look-alike stands in; {why}")
    try:
        failures = run_all(todo, out, command.device)
    except Stopped as stopped:
        print(f"slotattn: {stopped}; the same command goes on", file=sys.stderr)
        return 128 + stopped.signal
    print(f"{len(todo) - len(failures)} of {len(todo)} runs are complete")
    print(*write_report(asked, out, scale, command.data), sep="\n")
    for run, why in failures.items():
        print(f"slotattn: {run}: {why}", file=sys.stderr)
    return 1 if failures else 0
