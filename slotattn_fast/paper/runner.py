"""Trains, measures and draws what the experiments ask for, in a folder that several processes may share.

OUT/paper.json    the scale, the experiments that were asked for, and the format of the folder
OUT/runs/         a run folder for each training and seed, as of `slotattn train`; eval*.json in it
OUT/lock          held while paper.json is written
OUT/pictures/     of settings other than the training's
OUT/report.html, report.md, figures/
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep

from slotattn_fast.data.errors import DataError
from slotattn_fast.lock import locked
from slotattn_fast.paper.bases import Scale
from slotattn_fast.paper.evaluations import read_evaluation
from slotattn_fast.paper.experiments import EXPERIMENTS
from slotattn_fast.paper.trainings import Job, Training
from slotattn_fast.report.tables import evaluation_line
from slotattn_fast.train import run_folder
from slotattn_fast.train.config import Device, TrainConfig
from slotattn_fast.train.environment import is_out_of_memory
from slotattn_fast.train.errors import RunError, RunInUse
from slotattn_fast.train.evaluation import evaluate, keep, show
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
    try:
        if not path.exists() and out.exists() and not (out.is_dir() and all(map(_is_ours, out.iterdir()))):
            raise RunError(f"{out}: exists already and is not a folder of `slotattn paper`; choose another --out")
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be made ({error.strerror}); choose another --out") from error
    with locked(out / "lock", None):
        before = asked_before(out, scale) if path.exists() else None
        asked = {*names, *(before or ())}
        every = [name for name in EXPERIMENTS if name in asked]
        if every != before:
            run_folder.write_json(path, {"format": FORMAT, "scale": scale, "experiments": every})
    return every


def _is_ours(path: Path) -> bool:
    """Whether a folder of `slotattn paper` has it: paper.json may be about to be written, or was removed as damaged."""
    return path.name in ("runs", "pictures", "figures", "report.html", "report.md", "lock") or path.suffix == ".tmp"


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
    to it and waited for. Raises `Stopped` and KeyboardInterrupt.
    """
    failures: dict[str, str] = {}
    left, done, waiting = list(jobs), 0, False
    while left:
        busy = []
        for job in left:
            run = job.training.run(out, job.seed)
            try:
                for line in _do(job, run, out, device):
                    print(f"[{done + 1}/{len(jobs)}] {line}", flush=True)
            except RunInUse:
                busy.append(job)
                continue
            except (RunError, DataError, ValueError, MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    raise
                failures[run.name] = " ".join(str(error).split()) or "out of memory"
                if run.is_dir() and not isinstance(error, OtherSettings):
                    run_folder.write_json(run / FAILURE, {"error": failures[run.name]})
                print(f"[{done + 1}/{len(jobs)}] {run}: failed: {failures[run.name]}", flush=True)
            done += 1
        if busy and len(busy) == len(left):
            if not waiting:
                print(f"waiting for {len(busy)} of the runs, which other processes are at", flush=True)
            waiting = True
            sleep(WAIT)
        left = busy
    return failures


def _do(job: Job, run: Path, out: Path, device: Device | None) -> Iterator[str]:
    """A line for each evaluation that was not there."""
    config = require_run(job.training, job.seed, run)
    (run / FAILURE).unlink(missing_ok=True)
    if not run_folder.is_complete(run):
        try:
            result = train(run, configuration(run, device))
        except RunError:
            if not run_folder.is_complete(run):  # another process was faster
                raise
        else:
            if result is not None:
                yield evaluation_line(str(run), result)
    for setting in job.measured:
        if not _is_measured(run, setting, config):
            with run_folder.in_use(run):
                yield evaluation_line(str(run), keep(evaluate(run, setting, device), run, setting))
    for setting in job.drawn:
        folder = pictures(out, run, setting)
        if not (folder / "slots.png").exists():
            with run_folder.in_use(run):
                yield str(_draw(run, setting, device, folder))


def _is_measured(run: Path, setting: Setting, config: TrainConfig) -> bool:
    """Also of these data: the name of the file tells a folder's name alone."""
    try:
        result = read_evaluation(run / setting.file(), config.task)
    except RunError:
        return False
    return bool(result["data"] == setting.of(config).data)


def _draw(run: Path, setting: Setting, device: Device | None, folder: Path) -> Path:
    """All pictures of a setting or none."""
    if folder == run:
        return show(run, setting, device, folder)[0]
    folder.parent.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as fresh:
        drawn = show(run, setting, device, Path(fresh) / folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        drawn[0].parent.rename(folder)
    return folder / drawn[0].name


class OtherSettings(RunError):
    """A run is in the place of one that is asked for."""


def require_run(training: Training, seed: int, run: Path) -> TrainConfig:
    """Makes the run's folder if there is none, and returns its configuration. Raises `OtherSettings`."""
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
        raise OtherSettings(f"{run}: has other settings ({told}); choose another --out, or move it away")
    return found


def pictures(out: Path, run: Path, setting: Setting) -> Path:
    """The folder with the pictures of a run under a setting."""
    return run if setting == DEFAULT else out / "pictures" / f"{run.name}{setting.suffix()}"
