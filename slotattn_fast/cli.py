"""The command line: `slotattn train discovery`, `train resume`, `eval`, `show`, `info`, `data`.

Only what parses the arguments is imported here, so that `slotattn --help` takes a few tenths of a second.
"""

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

try:
    from tyro.conf import Positional, arg
    from tyro.extras import SubcommandApp
except ModuleNotFoundError as missing:
    sys.exit(f"slotattn: {missing}; the command line needs `pip install 'slotattn-fast[train]'`")

import slotattn_fast
from slotattn_fast.cli_data import DATA_COMMANDS, DataCommand, Generate, Prepare, run_data
from slotattn_fast.cli_errors import UsageError
from slotattn_fast.data.catalogue import prepared_folder
from slotattn_fast.data.errors import DataError
from slotattn_fast.train.config import PRESETS, BackendName, Device, TrainConfig
from slotattn_fast.train.errors import RunError

DESCRIPTION = "Slot Attention: train it, measure it, look at it. `slotattn --version` prints the version."

_FROM_PRESET = "(default: the preset's)"
_OVERRIDE_N = arg(metavar="N", help_behavior_hint=_FROM_PRESET)


@dataclass(frozen=True)
class TrainDiscovery:
    """Train the auto-encoder to find objects, measure FG-ARI and draw the slots."""

    data: Annotated[str | None, arg(metavar="NAME|DIR", help_behavior_hint=_FROM_PRESET)] = None
    """A data set that is generated while training, nothing is downloaded (tetrominoes, clevr, clevr-with-masks,
    multi-dsprites-binarized, -colored-on-grayscale, -colored-on-colored), or a folder that `slotattn data prepare` or
    `generate` made."""
    preset: Literal["quick", "tetrominoes", "multi-dsprites", "clevr6"] = "quick"
    """quick: a small model of Tetrominoes for a laptop, minutes on 2 CPU cores. The others: the paper's configurations,
    batch 64, lr 4e-4, warm-up 10 000, decay 0.5 per 100 000, 500 000 steps. The options below change settings."""
    max_objects: Annotated[int | None, arg(metavar="N", help_behavior_hint=_FROM_PRESET)] = None
    """Leave out scenes with more objects; 6 makes CLEVR6 of CLEVR."""
    greyscale: Annotated[bool, arg(help_behavior_hint="")] = False
    """Train on images without colour."""
    out: Path = Path("runs")
    """Folder that the run folder is made in."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: task-data-time)")] = None
    """Name of the run folder; must be new."""
    seed: int = 0
    """Seed of weights, scenes and slot noise."""
    steps: Annotated[int | None, _OVERRIDE_N] = None
    """Training steps."""
    batch_size: Annotated[int | None, _OVERRIDE_N] = None
    """Images a step."""
    lr: Annotated[float | None, arg(metavar="RATE", help_behavior_hint=_FROM_PRESET)] = None
    """Learning rate at the end of the warm-up."""
    num_slots: Annotated[int | None, _OVERRIDE_N] = None
    """Slots K."""
    iters: Annotated[int | None, _OVERRIDE_N] = None
    """Slot Attention iterations T."""
    device: Device = "auto"
    """Where to train; auto is CUDA if there is any."""
    backend: BackendName = "auto"
    """Backend of Slot Attention; `slotattn info` tells which one auto takes."""

    def config(self) -> TrainConfig:
        """The preset with this command's overrides. Raises ValueError for a value that cannot be used."""
        preset = PRESETS[self.preset]
        given = {name: getattr(self, name) for name in ("max_objects", "steps", "batch_size", "lr")}
        model = {"num_slots": self.num_slots, "iters": self.iters, "backend": self.backend}
        if self.greyscale:
            given["greyscale"], model["image_channels"] = True, 1
        if self.data is not None:
            # A folder is found again from wherever the run is resumed.
            folder = prepared_folder(self.data)
            given["data"] = self.data if folder is None else str(folder.resolve())
        return replace(
            preset,
            seed=self.seed,
            device=self.device,
            model={**preset.model, **{name: value for name, value in model.items() if value is not None}},
            **{name: value for name, value in given.items() if value is not None},
        )

    def folder(self) -> Path:
        """The run folder. Raises ValueError for a name that is not one folder's name."""
        data = Path(self.data or PRESETS[self.preset].data).name
        name = self.name or f"discovery-{data}-{datetime.now():%Y%m%d-%H%M%S}"
        if Path(name).name != name or name == "..":
            raise ValueError(f"name: got {name!r}, expected the name of one folder, without separators; see --out")
        return self.out / name


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, exactly as if it had not been."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""


@dataclass(frozen=True)
class _FinishedRun:
    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    device: Annotated[Device | None, arg(metavar="{auto,cpu,cuda}", help_behavior_hint="(default: the run's)")] = None
    """Where to run the model."""


@dataclass(frozen=True)
class Eval(_FinishedRun):
    """Measure a finished run again on its held-out scenes; gives the same number."""


@dataclass(frozen=True)
class Show(_FinishedRun):
    """Draw slots.png of a finished run again."""


@dataclass(frozen=True)
class Info:
    """Print versions, device, threads, and the backend that `auto` takes and why."""


Command = TrainDiscovery | Resume | Eval | Show | Info | DataCommand


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 for a failure, 2 for wrong usage, 128 + the signal if stopped.

    Every failure that a user can meet is one line on stderr.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments == ["--version"]:
        print(f"slotattn-fast {slotattn_fast.__version__}")
        return 0
    command: Command | None = None
    try:
        command = _parse(arguments)
        return _run(command)
    except UsageError as error:
        return _fail(error, 2)
    except OSError as error:
        going_on = isinstance(command, Prepare | Generate)
        return _fail(f"{error}{'; when that is mended the same command goes on' * going_on}", 1)
    except (RunError, DataError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        going_on = isinstance(command, Prepare | Generate)
        return _fail("interrupted" + "; the same command goes on" * going_on, 130)


def _run(command: Command) -> int:
    match command:
        case TrainDiscovery():
            return _train_discovery(command)
        case Resume(run):
            return _train(run)
        case Eval(run, device):
            from slotattn_fast.train import discovery

            _print_evaluation(run, discovery.evaluate(run, device))
        case Show(run, device):
            from slotattn_fast.train import discovery

            print(discovery.show(run, device))
        case Info():
            _print_info()
        case _:
            run_data(command)
    return 0


def _train_discovery(command: TrainDiscovery) -> int:
    from slotattn_fast.train import discovery

    try:
        run = command.folder()
        discovery.create(command.config(), run)
    except ValueError as error:
        raise UsageError(error) from error
    return _train(run)


def _train(run: Path) -> int:
    from slotattn_fast.train import discovery
    from slotattn_fast.train.loop import Stopped

    try:
        _print_evaluation(run, discovery.train(run))
    except Stopped as stopped:
        return _fail(f"{stopped}; go on with `slotattn train resume {run}`", 128 + stopped.signal)
    print(run / "slots.png")
    return 0


def _print_evaluation(run: Path, result: dict[str, Any]) -> None:
    counted = result["scenes"] - result["left_out"]
    print(f"{run}: FG-ARI {result['fg_ari']:.4f} on {counted} held-out scenes, MSE {result['mse']:.5f}")


def _print_info() -> None:
    import torch

    from slotattn_fast.train.environment import environment, resolve_device

    device = resolve_device("auto")
    backend = slotattn_fast.explain_backend(torch.empty(1, 1, 1, device=device))
    values = {**environment(device), "backend": f"{backend.name}: {backend.reason}"}
    for name, value in values.items():
        print(f"{name:16} {value}")


def _fail(message: object, code: int) -> int:
    """One line on stderr, whatever the message holds."""
    print("slotattn:", " ".join(str(message).split()), file=sys.stderr)
    return code


def _parse(arguments: list[str]) -> Command:
    train = SubcommandApp()
    train.__doc__ = "Train a model."
    train.command(name="discovery")(TrainDiscovery)
    train.command(name="resume")(Resume)
    app = SubcommandApp()
    data = SubcommandApp()
    data.__doc__ = "Prepare, draw and look at data sets."
    for name, data_command in DATA_COMMANDS.items():
        data.command(name=name)(data_command)
    app.command(train, name="train")
    app.command(data, name="data")
    app.command(name="eval")(Eval)
    app.command(name="show")(Show)
    app.command(name="info")(Info)
    # tyro draws a box with a title round an error message, or only rules on a plain terminal: keep the words.
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            return app.cli(prog="slotattn", args=arguments, description=DESCRIPTION)
    except SystemExit as end:
        if not end.code:
            raise
        lines = [line.strip(" │╭╮╰╯─") for line in boxes.getvalue().splitlines()]
        _title, *message = [line for line in lines if line.strip("-")]
        raise UsageError(" ".join(message)) from None


if __name__ == "__main__":
    sys.exit(main())
