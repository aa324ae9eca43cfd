"""The folder of a run: made once, never overwritten, read back with an error that says what to do.

    config.json  env.json  lock  metrics.csv  tb/  checkpoints/  images/
    model.safetensors  slots.png  iterations.png  eval.json

The first line appears when the run starts, the second when its training is done; eval.json is written last.
"""

import json
import math
import shutil
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slotattn_fast.atomic import write_text
from slotattn_fast.lock import locked
from slotattn_fast.train.config import TrainConfig, from_json
from slotattn_fast.train.errors import RunError, RunInUse

FORMAT = 3
"""Written to config.json; raised whenever a run folder of an older version could no longer be read rightly."""


def create(run: Path, config: TrainConfig, environment: dict[str, Any]) -> None:
    """Makes the folder with config.json and env.json, at once. Raises `RunError` if there is anything of that name."""
    fresh = run.with_name(f".{run.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        if run.exists():
            raise FileExistsError
        fresh.mkdir(parents=True)
        make_folders(fresh)
        write_json(fresh / "env.json", environment)
        write_json(fresh / "config.json", {"format": FORMAT, **asdict(config)})
        fresh.rename(run)
    except OSError as error:
        if run.exists():
            raise RunError(
                f"{run}: exists already and is not overwritten; choose another --name, or continue it with "
                f"`slotattn train resume {run}`"
            ) from None
        raise RunError(f"{run}: cannot be made ({error.strerror}); choose another --out or --name") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def make_folders(run: Path) -> None:
    """Those in the folder of a run, where they are missing."""
    for folder in ("checkpoints", "images", "tb"):
        (run / folder).mkdir(exist_ok=True)


def in_use(run: Path) -> AbstractContextManager[None]:
    """While entered, no other process trains the run. Raises `RunError` if one does."""
    return locked(run / "lock", RunInUse(f"{run}: another process is training it; wait for that, or stop it"))


def is_complete(run: Path) -> bool:
    """Whether it is trained and evaluated: nothing is left to resume."""
    return (run / "eval.json").exists() and (run / "model.safetensors").exists()


def read_config(run: Path) -> TrainConfig:
    """The configuration of a run. Raises `RunError` for a folder that is missing, damaged or of another format."""
    if run.exists() and not run.is_dir():
        raise RunError(f"{run}: a file, expected the folder of a run; move it away, or name another")
    if not run.is_dir():
        raise RunError(f"{run}: no such run folder; `slotattn train discovery` or `property` makes one")
    values = read_json(run / "config.json")
    found = values.pop("format", None)
    if found != FORMAT:
        raise RunError(
            f"{run}: format {found!r}, expected {FORMAT}; use the version of slotattn-fast that its env.json names"
        )
    try:
        return from_json(values)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise RunError(f"{run / 'config.json'}: damaged ({error}); restore it or train again") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run. Raises `RunError` if it is missing or damaged."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path}: missing, so this is not a whole run folder; restore it or train again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged ({error}); restore it or train again") from error
    if not isinstance(values, dict):
        raise RunError(f"{path}: damaged (not a JSON object); restore it or train again")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def number_or_none(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else value


_NOT_OF_THE_RESULT = (
    "data",
    "device",
    "devices",
    "compile",
    "cuda_graph",
    "log_every",
    "image_every",
    "checkpoint_every",
)
"""Fields of the configuration that a run may go on with changed. A prepared folder's place is one, its contents not."""


def differences(
    before: TrainConfig | Mapping[str, Any], now: TrainConfig | Mapping[str, Any], but: tuple[str, ...] = ()
) -> dict[str, tuple[Any, Any]]:
    """What of two configurations decides the result and differs: old and new value by name, the model's beside others.

    A generated data set decides it by its name. What stands in `but` is passed over.
    """
    old, new = ({**(asdict(c) if isinstance(c, TrainConfig) else c)} for c in (before, now))
    passed_over = {*_NOT_OF_THE_RESULT, *but}
    if old["data_sha256"] is None:
        passed_over.discard("data")
    for config in (old, new):
        config.update(config.pop("model"))
    names = sorted((old.keys() | new.keys()) - passed_over)
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}
