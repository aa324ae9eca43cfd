"""`slotattn data`: prepare, generate, check, show, info."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from slotattn_fast.cli_errors import UsageError
from slotattn_fast.data.catalogue import CATALOGUE, GENERATED

_ALL_NAMES = f"One of {', '.join(CATALOGUE)}."


@dataclass(frozen=True)
class Prepare:
    """Convert a published data set, once, to the arrays that training reads.

    Images are cut, resized and split as in the paper. After a stop, a kill or a full disk the same command goes on.
    """

    name: Annotated[Positional[str], arg(metavar="NAME", help=_ALL_NAMES)]
    source: Annotated[Path, arg(metavar="PATH")]
    """The published file or folder; `slotattn data info NAME` says which, and where to get it."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder to make; must be new."""
    train: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the paper's)")] = None
    """Scenes to train on, the first of the source."""
    eval: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the paper's)")] = None
    """Scenes to evaluate, those right after."""


@dataclass(frozen=True)
class Generate:
    """Draw a look-alike of a data set into a folder, which training then reads instead of drawing."""

    name: Annotated[Positional[str], arg(metavar="NAME", help=f"One of {', '.join(GENERATED)}.")]
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder to make; must be new."""
    seed: int = 0
    """Of the scenes to train on; those to evaluate are the same for every seed."""
    train: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the published number)")] = None
    """Scenes to train on."""
    eval: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the paper's)")] = None
    """Scenes to evaluate; of clevr-with-masks so many of at most 6 objects, and those between."""
    max_objects: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 10)")] = None
    """Most objects of a CLEVR scene. 6 is CLEVR6, all of whose scenes to evaluate then have at most 6."""


@dataclass(frozen=True)
class Check:
    """Compare every array of a prepared folder with its checksum."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """The folder."""


@dataclass(frozen=True)
class ShowData:
    """Draw a contact sheet: scenes, and below each its true objects."""

    data: Annotated[Positional[str], arg(metavar="NAME|DIR")]
    """A data set that is generated, or a prepared folder."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("scenes.png")
    """PNG to write."""
    max_objects: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Leave out scenes with more objects, or draw CLEVR with at most so many."""


@dataclass(frozen=True)
class InfoData:
    """Say what a data set is, its size and licence, where to get it, and the command that prepares it."""

    name: Annotated[Positional[str], arg(metavar="NAME", help=_ALL_NAMES)]


DataCommand = Prepare | Generate | Check | ShowData | InfoData
DATA_COMMANDS = {"prepare": Prepare, "generate": Generate, "check": Check, "show": ShowData, "info": InfoData}


def run_data(command: DataCommand) -> None:
    """Runs one command. Raises `UsageError`, `DataError` or OSError for what a user can meet."""
    try:
        match command:
            case Prepare():
                from slotattn_fast.data.prepare import prepare

                made = prepare(command.name, command.source, command.out, train=command.train, held_out=command.eval)
                print(f"{made.path}: {_scenes(made.manifest['scenes'])}")
            case Generate():
                from slotattn_fast.data.prepare import generate

                made = generate(
                    command.name,
                    command.out,
                    seed=command.seed,
                    train=command.train,
                    held_out=command.eval,
                    max_objects=command.max_objects,
                )
                print(f"{made.path}: {_scenes(made.manifest['scenes'])}")
            case Check(folder):
                from slotattn_fast.data.prepared import check

                checked = check(folder)
                print(f"{folder}: {checked.name}, {_scenes(checked.manifest['scenes'])}: whole")
            case ShowData():
                from slotattn_fast.report.contact_sheet import write_contact_sheet

                write_contact_sheet(command.data, command.out, command.max_objects)
                print(command.out)
            case InfoData(name):
                print(_describe(name))
    except ValueError as error:
        raise UsageError(error) from error


def _scenes(counts: dict[str, int]) -> str:
    return f"{counts['train']} scenes to train on, {counts['eval']} to evaluate"


def _describe(name: str) -> str:
    if name not in CATALOGUE:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(CATALOGUE)}")
    about = CATALOGUE[name]
    lines = {
        "scenes": f"{about.scenes} published, of which {about.train} to train on and {about.eval} to evaluate",
        "size": f"{about.megabytes:.0f} MB prepared",
        "licence": about.licence,
        "source": f"{about.source}: {about.url}",
        "prepare": f"slotattn data prepare {name} --source PATH --out DIR",
        "look-alike": f"slotattn data generate {name} --out DIR" if about.generated else "none",
    }
    return "\n".join([f"{name}: {about.what}", *(f"{key:12} {value}" for key, value in lines.items())])
