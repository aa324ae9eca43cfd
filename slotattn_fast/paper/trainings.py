"""The trainings of the experiments: which there are, under which names, and by which commands."""

import shlex
from collections.abc import Container, Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from slotattn_fast.data.catalogue import MANIFEST
from slotattn_fast.data.errors import DataError
from slotattn_fast.data.prepared import open_prepared
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.models.property_config import PropertyConfig
from slotattn_fast.paper.bases import BASES, Scale, base
from slotattn_fast.paper.experiments import EXPERIMENTS, Arm, Experiment
from slotattn_fast.train.config import PRESETS, TrainConfig
from slotattn_fast.train.setting import Setting

_RUN_FIELDS = {field.name for field in fields(TrainConfig)} - {"model"}
_FLAGS = ("greyscale",)


class Training(NamedTuple):
    """What arms of one base with the same changes share."""

    name: str
    config: TrainConfig
    """Of seed 0."""

    def run(self, out: Path, seed: int) -> Path:
        return out / "runs" / f"{self.name}-seed-{seed}"


class Job(NamedTuple):
    """A training of one seed, and what is measured and drawn of it."""

    training: Training
    seed: int
    measured: tuple[Setting, ...]
    drawn: tuple[Setting, ...]


def training_of(arm: Arm, scale: Scale, data: Path | None = None) -> Training:
    """`data` is a folder of prepared folders: those under the names of data sets take the place of look-alikes."""
    name, config = base(scale, arm.base)
    differing = {key: value for key, value in arm.changes.items() if value != _value(config, key)}
    model = {**config.model, **{key: value for key, value in differing.items() if key not in _RUN_FIELDS}}
    changed = replace(config, model=model, **{k: v for k, v in differing.items() if k in _RUN_FIELDS})
    words = [f"-{key.replace('_', '-')}-{value}" for key, value in differing.items() if value is not None]
    prepared = prepared_in(data, changed.data, _image_size(changed))
    if prepared is not None:
        changed = replace(changed, data=str(prepared), scenes=None)
    return Training(name + "".join(words), changed)


def _value(config: TrainConfig, key: str) -> Any:
    return getattr(config, key) if key in _RUN_FIELDS else config.model.get(key, _default(config, key))


def _image_size(config: TrainConfig) -> int:
    return int(_value(config, "image_size"))


def prepared_in(data: Path | None, name: str, size: int) -> Path | None:
    """The prepared folder of that name, if there is one whose images are of this size, or that is damaged."""
    if data is None or not (data / name / MANIFEST).exists():
        return None
    try:
        fits = open_prepared(data / name).splits["train"]["images"].shape[1:3] == (size, size)
    except DataError:
        fits = True  # what is wrong is told when a run opens it
    return (data / name).resolve() if fits else None


def is_look_alike(folder: Path) -> bool:
    """Whether `slotattn data generate` made a prepared folder; False where it cannot be read."""
    try:
        return open_prepared(folder).generator is not None
    except (DataError, OSError):
        return False


def setting_of(setting: Setting, data: Path | None, config: TrainConfig) -> Setting:
    """The same with the prepared folder of its data, if there is one."""
    prepared = None if setting.data is None else prepared_in(data, setting.data, _image_size(config))
    return setting if prepared is None else replace(setting, data=str(prepared))


def chosen(names: Iterable[str], scale: Scale, only: Container[str] = BASES) -> list[tuple[Experiment, Arm]]:
    """The arms of these experiments that are trained from one of the bases `only`."""
    experiments = (EXPERIMENTS[name] for name in names)
    return [(each, arm) for each in experiments for arm in each.arms if base(scale, arm.base).name in only]


def jobs(
    names: Iterable[str], scale: Scale, seeds: int, data: Path | None = None, only: Container[str] = BASES
) -> list[Job]:
    """Of the chosen arms, each training once for each seed: all of the first seed, then of the next."""
    trainings: dict[str, Training] = {}
    measured: dict[str, dict[Setting, None]] = {}
    drawn: dict[str, dict[Setting, None]] = {}
    for experiment, arm in chosen(names, scale, only):
        training = training_of(arm, scale, data)
        trainings[training.name] = training
        into = drawn if experiment.form == "pictures" else measured
        settings = (setting_of(setting, data, training.config) for setting in arm.settings)
        into.setdefault(training.name, {}).update(dict.fromkeys(settings))
    return [
        Job(training, seed, tuple(measured.get(name, ())), tuple(drawn.get(name, ())) if seed == 0 else ())
        for seed in range(seeds)
        for name, training in trainings.items()
    ]


def command(training: Training) -> str:
    """`slotattn train` for seed 0, as one would type it."""
    config, preset = training.config, PRESETS[training.config.task][training.config.preset]
    words = ["slotattn", "train", config.task, "--preset", config.preset]
    for key in sorted(_RUN_FIELDS - {"task", "preset", "data_sha256"}):
        value = getattr(config, key)
        if value == getattr(preset, key) or value is None:  # None comes with another option
            continue
        words += [f"--{_dashed(key)}"] if key in _FLAGS else [f"--{_dashed(key)}", str(value)]
    for key, value in config.model.items():
        if value == preset.model.get(key, _default(config, key)):
            continue
        if isinstance(value, bool):
            words += [f"--{'' if value else 'no-'}{_dashed(key)}"]
        else:
            words += [f"--{_dashed(key)}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join([*words, "--seed", "0"])


def _dashed(key: str) -> str:
    return key.replace("_", "-")


def _default(config: TrainConfig, key: str) -> Any:
    return getattr(DiscoveryConfig() if config.task == "discovery" else PropertyConfig(), key)


def evaluations(settings: Iterable[Setting]) -> list[str]:
    """`slotattn eval` for the settings that are not the training's."""
    lines: dict[str, list[str]] = {}
    for setting in settings:
        other = {key: value for key, value in asdict(setting).items() if value is not None and key != "iters"}
        words = [f"--{_dashed(key)} {shlex.quote(str(value))}" for key, value in other.items()]
        lines.setdefault(" ".join(words), []).extend([] if setting.iters is None else [str(setting.iters)])
    return [
        " ".join(filter(None, ["slotattn eval RUN", words, f"--iters {' '.join(iters)}" if iters else ""]))
        for words, iters in lines.items()
        if words or iters
    ]


def look_alikes(arms: Iterable[Arm], scale: Scale, data: Path | None) -> dict[str, str]:
    """The data sets of the arms that look-alikes stand in for, and why."""
    used = {}
    for arm in arms:
        config = base(scale, arm.base).config
        for name in (config.data, *(setting.data for setting in arm.settings if setting.data is not None)):
            used[name] = _why_look_alike(data, name, _image_size(config))
    return {name: why for name, why in used.items() if why is not None}


def _why_look_alike(data: Path | None, name: str, size: int) -> str | None:
    folder = prepared_in(data, name, size)
    if folder is not None:
        return "`slotattn data generate` made its folder" if is_look_alike(folder) else None
    if data is not None and (data / name).exists():
        return "its folder has images of another size"
    return f"see `slotattn data info {name}` for the published"
