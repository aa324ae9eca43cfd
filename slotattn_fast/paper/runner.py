"""Trains, measures and draws what the experiments ask for, in a folder that several processes may share.

OUT/paper.json    the scale, the experiments that were asked for, and the format of the folder
OUT/runs/         a run folder for each training and seed, as of `slotattn train`; eval*.json in it
OUT/pictures/     of settings other than the training's
OUT/report.html, report.md, figures/
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import sleep

import torch

from slotattn_fast.data.errors import DataError
from slotattn_fast.paper.bases import Scale
from slotattn_fast.paper.experiments import EXPERIMENTS
from slotattn_fast.paper.trainings import Job, Training
from slotattn_fast.report.tables import evaluation_line
from slotattn_fast.train import run_folder
from slotattn_fast.train.config import Device
from slotattn_fast.train.errors import RunError, RunInUse
from slotattn_fast.train.evaluation import evaluate, show
from slotattn_fast.train.run import configuration, create, resolved, train
from slotattn_fast.train.setting import DEFAULT, Setting

FORMAT = 1
"""Of paper.json; raised whenever an older folder could not be gone on with."""
FAILURE = "failure.json"
"""In the folder of a run that could not be trained or measured: why. The next attempt removes it."""
WAIT = 5.0
"""Seconds between looks at the runs of other processes."""


def open_folder(out: Path, scale: Scale, names: Iterable[str]) -> list[str]:
    """Makes `out`, or takes it up again, and returns the experiments asked for by now: `names` and those of before.

    Raises `RunError` if it is something else's, or of another scale or format.
    """
    path = out / "paper.json"
    if not path.exists():
        try:
            if out.exists() and not (out.is_dir() and all(map(_is_ours, out.iterdir()))):
                raise RunError(f"{out}: exists already and is not a folder of `slotattn paper`; choose another --out")
            (out / "runs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{out}: cannot be made ({error.strerror}); choose another --out") from error
        run_folder.write_json(path, {"format": FORMAT, "scale": scale, "experiments": []})
    before = asked_before(out, scale)
    asked = {*names, *before}
    every = [name for name in EXPERIMENTS if name in asked]
    if every != before:
        run_folder.write_json(path, {"format": FORMAT, "scale": scale, "experiments": every})
    return every


def _is_ours(path: Path) -> bool:
    """Whether a folder of `slotattn paper` has it: paper.json may be about to be written, or was removed as damaged."""
    return path.name in ("runs", "pictures", "figures", "report.html", "report.md") or path.suffix == ".tmp"


def asked_before(out: Path, scale: Scale) -> list[str]:
    """The experiments that a folder is of. Raises `RunError` if it is missing, or of another scale or format."""
    if not (out / "paper.json").exists():
        raise RunError(f"{out}: no folder of `slotattn paper`, which makes one without --report-only")
    try:
        found = json.loads((out / "paper.json").read_bytes())
        if found["format"] != FORMAT:
            raise RunError(
                f"{out}: format {found['format']!r}, expected {FORMAT}; it is of another version of slotattn-fast, so "
                "choose another --out"
            )
        of_scale, experiments = found["scale"], list(found["experiments"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{out / 'paper.json'}: damaged ({error!r}); remove it, and the same command goes on") from error
    if of_scale != scale:
        raise RunError(f"{out}: holds runs of scale {of_scale!r}, not {scale!r}; choose another --out")
    return [name for name in EXPERIMENTS if name in experiments]


def run_all(jobs: Sequence[Job], out: Path, device: Device | None) -> dict[str, str]:
    """Does every job, and returns why some could not be done, by the names of their runs.

    What is there already is not done again, a run that was stopped goes on, and one that another process is at is left
    to it and waited for. Raises `loop.Stopped` and KeyboardInterrupt.
    """
    failures: dict[str, str] = {}
    left, done = list(jobs), 0
    while left:
        busy = []
        for job in left:
            run = job.training.run(out, job.seed)
            try:
                lines = list(_do(job, run, out, device))
            except RunInUse:
                busy.append(job)
                continue
            except (RunError, DataError, MemoryError, torch.OutOfMemoryError) as error:
                failures[run.name] = " ".join(str(error).split())
                if run.is_dir():
                    run_folder.write_json(run / FAILURE, {"error": failures[run.name]})
                lines = [f"{run}: failed: {failures[run.name]}"]
            done += 1
            for line in lines:
                print(f"[{done}/{len(jobs)}] {line}", flush=True)
        if busy and len(busy) == len(left):
            sleep(WAIT)
        elif busy:
            print(f"other processes are at {len(busy)} of the runs", flush=True)
        left = busy
    return failures


def _do(job: Job, run: Path, out: Path, device: Device | None) -> Iterator[str]:
    """A line for each evaluation that was not there."""
    require_run(job.training, job.seed, run)
    (run / FAILURE).unlink(missing_ok=True)
    if not run_folder.is_complete(run):
        result = train(run, configuration(run, device))
        if result is not None:
            yield evaluation_line(str(run), result)
    for setting in job.measured:
        if not (run / setting.file()).exists():
            with run_folder.in_use(run):
                yield evaluation_line(str(run), evaluate(run, setting, device))
    for setting in job.drawn:
        folder = pictures(out, run, setting)
        if not (folder / "slots.png").exists():
            with run_folder.in_use(run):
                yield f"{show(run, setting, device, folder)[0]}"


def require_run(training: Training, seed: int, run: Path) -> None:
    """Makes the run's folder if there is none. Raises `RunError` if one of other settings is in its place."""
    config = replace(training.config, seed=seed)
    if not run.exists():
        try:
            create(config, run)
        except RunError:
            if not run.exists():  # another process was faster
                raise
    found = run_folder.read_config(run)
    if changed := run_folder.differences(resolved(config), found):
        told = ", ".join(f"{name}: {now!r}, expected {wanted!r}" for name, (wanted, now) in changed.items())
        raise RunError(f"{run}: has other settings ({told}); choose another --out, or move it away")


def pictures(out: Path, run: Path, setting: Setting) -> Path:
    """The folder with the pictures of a run under a setting."""
    return run if setting == DEFAULT else out / "pictures" / f"{run.name}{Path(setting.file()).stem[4:]}"
