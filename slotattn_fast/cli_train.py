"""`slotattn train`: discovery, property, resume."""

import ast
import inspect
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from slotattn_fast.data.catalogue import prepared_folder, require_one_meaning
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.models.property_config import PropertyConfig
from slotattn_fast.train.config import PRESETS, Device, TaskName, TrainConfig

_FROM_PRESET = "(default: the preset's)"


def _options(name: str, of: type, *, flags: tuple[str, ...] = (), hidden: tuple[str, ...] = ()) -> Any:
    """A class with a command-line option for each field of the configuration `of`; what is not given is None."""
    options: list[tuple[str, Any, Any]] = []
    said = _docstrings(of)
    for key, hint in get_type_hints(of).items():
        if key in hidden:
            continue
        if key in flags:
            flag = arg(help=said[key], help_behavior_hint="")
            options.append((key, Annotated[bool, FlagCreatePairsOff, flag], False))
        else:
            given = arg(help=said[key], metavar=_metavar(hint), help_behavior_hint=_FROM_PRESET)
            options.append((key, Annotated[hint | None, DisallowNone, given], None))
    return make_dataclass(name, options, frozen=True)


def _docstrings(of: type) -> dict[str, str]:
    """What the source says below each field of a dataclass, its own and those that it inherits."""
    said = {}
    for kind in reversed(of.__mro__[:-1]):
        (tree,) = ast.parse(inspect.getsource(kind)).body
        assert isinstance(tree, ast.ClassDef)
        for field_, text in pairwise(tree.body):
            match field_, text:
                case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(words))):
                    said[key] = " ".join(words.split())
    return said


def _metavar(hint: Any) -> str | None:
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    if isinstance(kinds[0], str):
        return "{" + ",".join(kinds) + "}"
    if kinds[-1] is ...:
        return "N [N ...]"
    return {int: "N", float: "X"}.get(kinds[0])


RunOptions = _options(
    "RunOptions",
    TrainConfig,
    flags=("greyscale", "compile", "cuda_graph"),
    hidden=("task", "preset", "data", "data_sha256", "model"),
)
DiscoveryOptions = _options("DiscoveryOptions", DiscoveryConfig)
PropertyOptions = _options("PropertyOptions", PropertyConfig)


@dataclass(frozen=True)
class Train:
    """What the two tasks' commands have in common; each has presets and model options of its own."""

    task: ClassVar[TaskName]
    preset: str = "quick"
    data: str | None = None
    out: Path = Path("runs")
    """Folder that the run folder is made in."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: task-data-time)")] = None
    """Name of the run folder; must be new."""
    run: OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)  # type: ignore[valid-type]
    """How to train."""
    model: Any = None

    def config(self) -> TrainConfig:
        """The preset with this command's overrides. Raises ValueError for a value that cannot be used."""
        preset = PRESETS[self.task][self.preset]
        given = {key: value for key, value in asdict(self.run).items() if value is not None and value is not False}
        model = {key: value for key, value in asdict(self.model).items() if value is not None}
        if "greyscale" in given:
            model.setdefault("image_channels", 1)
        if given.get("decay", "exponential") != "exponential":
            given.setdefault("decay_steps", None)
        if self.data is not None:
            require_one_meaning(self.data)
            folder = prepared_folder(self.data)
            if folder is None:
                given["data"] = self.data
            elif "scenes" in given:
                raise ValueError(
                    f"scenes: got {given['scenes']} with {self.data}, a prepared folder, which is trained on in whole; "
                    "leave out --scenes, which is for scenes that are generated"
                )
            else:  # found again from wherever the run is resumed
                given |= {"data": str(folder.resolve()), "scenes": None}
        return replace(preset, model={**preset.model, **model}, **given)

    def folder(self) -> Path:
        """The run folder. Raises ValueError for a name that is not one folder's name."""
        data = Path(self.data or PRESETS[self.task][self.preset].data).name
        name = f"{self.task}-{data}-{datetime.now():%Y%m%d-%H%M%S}" if self.name is None else self.name
        if Path(name).name != name or name in ("", ".."):
            raise ValueError(f"name: got {name!r}, expected the name of one folder, without separators; see --out")
        return self.out / name


@dataclass(frozen=True)
class TrainDiscovery(Train):
    """Train the auto-encoder to find objects, measure FG-ARI and draw the slots."""

    task: ClassVar[TaskName] = "discovery"
    preset: Annotated[
        Literal["quick", "tetrominoes", "multi-dsprites", "multi-dsprites-binarized", "clevr6", "clevr6-greyscale"],
        arg(
            metavar="NAME",
            help="quick: a small model of Tetrominoes for a laptop, minutes on 2 CPU cores. The paper's "
            "configurations, batch 64, lr 4e-4, warm-up 10 000, decay 0.5 per 100 000, 500 000 steps: tetrominoes, "
            "multi-dsprites, multi-dsprites-binarized, clevr6, clevr6-greyscale. The options below change settings.",
        ),
    ] = "quick"
    data: Annotated[
        str | None,
        arg(
            metavar="NAME|DIR",
            help="A data set that is generated while training, nothing is downloaded (tetrominoes, clevr, "
            "clevr-with-masks, multi-dsprites-binarized, -colored-on-grayscale, -colored-on-colored), or a folder that "
            "`slotattn data prepare` or `generate` made.",
            help_behavior_hint=_FROM_PRESET,
        ),
    ] = None
    model: OmitArgPrefixes[DiscoveryOptions] = field(default_factory=DiscoveryOptions)  # type: ignore[valid-type]
    """The model, its sizes and the ablations of the paper's Appendix B."""


@dataclass(frozen=True)
class TrainProperty(Train):
    """Train the set predictor to say what and where the objects are, measure AP and draw what it predicts."""

    task: ClassVar[TaskName] = "property"
    preset: Annotated[
        Literal["quick", "clevr10", "clevr6"],
        arg(
            metavar="NAME",
            help="quick: a small model of small CLEVR images for a laptop, minutes on 2 CPU cores. The paper's "
            "configuration, batch 512, lr 4e-4, warm-up 1 000, decay 0.5 per 50 000, 150 000 steps: clevr10; and for "
            "scenes of at most 6 objects: clevr6. The options below change settings.",
        ),
    ] = "quick"
    data: Annotated[
        str | None,
        arg(
            metavar="NAME|DIR",
            help="CLEVR that is generated while training, nothing is downloaded (clevr: whole images; "
            "clevr-with-masks: their middle), or a folder with properties that `slotattn data prepare` or `generate` "
            "made.",
            help_behavior_hint=_FROM_PRESET,
        ),
    ] = None
    model: OmitArgPrefixes[PropertyOptions] = field(default_factory=PropertyOptions)  # type: ignore[valid-type]
    """The model, its sizes and the ablations of the paper's Appendices B and C."""


_ThisRuns = Annotated[bool | None, DisallowNone, arg(help_behavior_hint="(default: the run's)")]


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, exactly as if it had not been."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""
    device: Annotated[Device | None, arg(metavar="{auto,cpu,cuda}", help_behavior_hint="(default: the run's)")] = None
    """Where to train."""
    devices: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the run's)")] = None
    """GPUs of this machine, or processes on its CPU, that share a step's batch."""
    data: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: the run's)")] = None
    """Where the prepared folder is now, if it was moved."""
    compile: _ThisRuns = None
    """Train through torch.compile."""
    cuda_graph: _ThisRuns = None
    """Replay a whole step as one CUDA graph, on one GPU."""
