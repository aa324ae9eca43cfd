"""The command line: `slotattn train discovery`, `property` or `resume`, `eval`, `show`, `paper`, `info`, `data`.

Only what parses the arguments is imported here, so that `slotattn --help` takes a few tenths of a second.
"""

import contextlib
import errno
import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import slotattn_fast
from slotattn_fast.cli_errors import UsageError, one_line, options, unknown_options
from slotattn_fast.data.catalogue import partial_folder
from slotattn_fast.data.errors import DataError
from slotattn_fast.train.errors import RunError


def _answered(arguments: list[str]) -> bool:
    """Answers what takes no options, which the parser need not be there for."""
    if arguments == ["--version"]:
        print(f"slotattn-fast {slotattn_fast.__version__}", flush=True)
    elif arguments == ["info"]:
        _print_info()
    else:
        return False
    return True


def _print_info() -> None:
    import torch

    from slotattn_fast.train.environment import environment, resolve_device

    device = resolve_device("auto")
    backend = slotattn_fast.explain_backend(torch.empty(1, 1, 1, device=device))
    values = {**environment(device), "backend": f"{backend.name}: {backend.reason}"}
    for name, value in values.items():
        if value is not None:  # what is not there, as a wheel's commit
            print(f"{name:16} {value}")


def _fail(message: object, code: int) -> int:
    """One line on stderr, whatever the message holds."""
    print("slotattn:", " ".join(str(message).split()), file=sys.stderr)
    return code


try:
    from tyro.extras import SubcommandApp

    from slotattn_fast.cli_data import DATA_COMMANDS, DataCommand, Generate, Prepare, ShowData, run_data
    from slotattn_fast.cli_eval import Eval, Show, run_trained
    from slotattn_fast.cli_paper import Paper, run_paper
    from slotattn_fast.cli_train import Resume, Train, TrainDiscovery, TrainProperty
except KeyboardInterrupt:  # to import these is most of what `slotattn --help` takes
    sys.exit(_fail("interrupted", 130))
except ModuleNotFoundError as missing:
    if _answered(sys.argv[1:]):
        sys.exit()
    sys.exit(_fail(f"{missing}; the command line needs `pip install 'slotattn-fast[train]'`", 1))

DESCRIPTION = "Slot Attention: train it, measure it, look at it. `slotattn --version` prints the version."


@dataclass(frozen=True)
class Info:
    """Print versions, device, threads, and the backend that `auto` takes and why."""


_CLOSED_PIPE = 141
"""128 and SIGPIPE, which not every system has."""
_NO_PLACE = {errno.EACCES, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
"""What is wrong with a path itself, so that another one mends it."""
_TRAIN = {"discovery": TrainDiscovery, "property": TrainProperty, "resume": Resume}
_COMMANDS = {"train": _TRAIN, "data": DATA_COMMANDS, "eval": Eval, "show": Show, "paper": Paper, "info": Info}
Command = TrainDiscovery | TrainProperty | Resume | Eval | Show | Paper | Info | DataCommand


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 for a failure, 2 for wrong usage, 128 + the signal if stopped.

    Every failure that a user can meet is one line on stderr.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    command: Command | None = None
    try:
        if _answered(arguments):
            print(end="", flush=True)
            return 0
        command = _parse(arguments)
        code = _run(command)
        print(end="", flush=True)
        return code
    except UsageError as error:
        return _fail(error, 2)
    except BrokenPipeError as error:
        # Whoever reads the output, such as `head`, has seen enough; what is left of it is not to fail again at exit.
        with contextlib.suppress(OSError):  # of an output that is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail(f"{error}; the same command goes on", _CLOSED_PIPE) if _goes_on(command) else _CLOSED_PIPE
    except OSError as error:
        if error.errno in _NO_PLACE and error.filename and _written(command, Path(error.filename)):
            return _fail(f"{error}; choose another --out", 1)
        return _fail(f"{error}{'; when that is mended the same command goes on' * _goes_on(command)}", 1)
    except (RunError, DataError) as error:
        return _fail(error, 1)
    except (MemoryError, RuntimeError) as error:
        return _fail(_told(error, "out of memory"), 1)
    except KeyboardInterrupt:
        return _fail("interrupted" + "; the same command goes on" * _goes_on(command), 130)


def _goes_on(command: Command | None) -> bool:
    """Whether the command, given again, goes on with what it has begun and kept."""
    match command:
        case Prepare() | Generate():
            return partial_folder(command.out).exists()
        case Paper(report_only=False, scale=str() as scale):
            return (command.out or Path(f"paper-{scale}")).exists()
    return False


def _written(command: Command | None, path: Path) -> bool:
    """Whether this is where the command writes what --out says, or a folder of that."""
    match command:
        case Show(out=None):
            return path.suffix == ".png"
        case Prepare() | Generate():
            places = [command.out, partial_folder(command.out)]
        case ShowData(out=out) | Show(out=Path() as out):
            places = [out]
        case _:
            return False
    return any(path.is_relative_to(place) or place.is_relative_to(path) for place in places)


def _run(command: Command) -> int:
    match command:
        case Train():
            return _train_anew(command)
        case Resume():
            given = asdict(command)
            return _train(given.pop("run"), **given)
        case Eval() | Show():
            run_trained(command)
        case Paper():
            return run_paper(command)
        case Info():
            _print_info()
        case _:
            run_data(command)
    return 0


def _train_anew(command: Train) -> int:
    from slotattn_fast.train.processes import by_the_first, connect, is_first, launched
    from slotattn_fast.train.run import create

    def make() -> Path:
        run = command.folder()
        create(config, run)
        return run

    try:
        config = command.config()
        run = by_the_first(connect(config), make) if launched() else make()
    except ValueError as error:
        raise UsageError(error) from error
    if config.warmup_steps >= config.steps and is_first():
        print(
            f"slotattn: a warm-up of {config.warmup_steps} steps does not end within {config.steps}: the rate stays "
            f"below --lr {config.lr}; see --warmup-steps",
            file=sys.stderr,
        )
    return _train(run)


def _train(run: Path, **given: Any) -> int:
    """Trains a run; `given` as `train.run.configuration` takes it."""
    from slotattn_fast.report.tables import evaluation_line
    from slotattn_fast.train.environment import resolve_device
    from slotattn_fast.train.errors import Stopped
    from slotattn_fast.train.processes import is_first
    from slotattn_fast.train.run import configuration, train

    try:
        config = configuration(run, **given)
    except ValueError as error:
        raise UsageError(error) from error
    go_on = f"go on with `slotattn train resume {shlex.quote(str(run))}`"
    try:
        if is_first():
            print(f"{run}: {config.steps} steps on {resolve_device(config.device)}", flush=True)
        result = train(run, config)
    except Stopped as stopped:
        code = 128 + stopped.signal
        return _fail(f"{stopped}; {go_on}", code) if is_first() else code
    except KeyboardInterrupt:
        return _fail(f"interrupted; {go_on}", 130)
    except BrokenPipeError as error:
        _fail(f"{error}; {go_on}", _CLOSED_PIPE)
        raise
    except OSError as error:
        return _fail(f"{error}; when that is mended, {go_on}", 1)
    except (MemoryError, RuntimeError) as error:
        return _fail(_told(error, "out of memory; train anew with a smaller --batch-size or model"), 1)
    if result is not None:
        print(evaluation_line(str(run), result))
        print(*sorted(run.glob("*.png")), sep="\n")
    return 0


def _told(error: MemoryError | RuntimeError, out_of_memory: str) -> str:
    """What a user is told of it. Raises it if it is neither of the machine's memory nor of a backend that was named."""
    from slotattn_fast.functional import BackendUnavailable
    from slotattn_fast.train.environment import is_out_of_memory

    if isinstance(error, BackendUnavailable):
        return str(error)
    if not is_out_of_memory(error):
        raise error
    return f"{out_of_memory} ({next(iter(str(error).strip().splitlines()), type(error).__name__)})"


def _parse(arguments: list[str]) -> Command:
    train, data = _app(_TRAIN), _app(DATA_COMMANDS)
    train.__doc__ = "Train a model."
    data.__doc__ = "Prepare, draw and look at data sets."
    app = _app({**_COMMANDS, "train": train, "data": data})
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            return app.cli(prog="slotattn", args=arguments, description=DESCRIPTION)
    except SystemExit as end:
        if not end.code:
            raise
    given = _named(arguments)
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        app.cli(prog="slotattn", args=[*given, "--help"])
    message = unknown_options(arguments, options(told.getvalue())) or one_line(boxes.getvalue())
    raise UsageError(f"{message}; see `{' '.join(['slotattn', *given])} --help`")


def _named(arguments: list[str]) -> list[str]:
    """The command that the arguments begin with, or as much as there is of one."""
    commands: Any = _COMMANDS
    for number, word in enumerate(arguments):
        if not isinstance(commands, dict) or word not in commands:
            return arguments[:number]
        commands = commands[word]
    return arguments


def _app(commands: Mapping[str, Any]) -> SubcommandApp:
    app = SubcommandApp()
    for name, command in commands.items():
        app.command(command, name=name)
    return app


if __name__ == "__main__":
    sys.exit(main())
