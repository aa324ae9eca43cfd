"""`slotattn eval` and `slotattn show`: trained models measured and drawn."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import DisallowNone, Positional, arg

from slotattn_fast.cli_errors import UsageError
from slotattn_fast.data.catalogue import require_one_meaning
from slotattn_fast.pretrained import PRETRAINED, pretrained
from slotattn_fast.train.config import Device

if TYPE_CHECKING:
    from slotattn_fast.train.setting import Setting

_N_AS_TRAINED = arg(metavar="N", help_behavior_hint="(default: as in training)")


@dataclass(frozen=True)
class _Trained:
    pretrained: Annotated[
        str | None,
        arg(
            metavar="NAME",
            help=f"A model that comes with the package, in place of a run: {', '.join(PRETRAINED)}.",
            help_behavior_hint="",
        ),
    ] = None
    num_slots: Annotated[int | None, _N_AS_TRAINED] = None
    """Slots K."""
    max_objects: Annotated[int | None, _N_AS_TRAINED] = None
    """Leave out scenes with more objects."""
    data: Annotated[str | None, arg(metavar="NAME|DIR", help_behavior_hint="(default: as in training)")] = None
    """A data set that is generated, or a prepared folder."""
    device: Annotated[Device | None, arg(metavar="{auto,cpu,cuda}", help_behavior_hint="(default: the run's)")] = None
    """Where to run the model."""

    def setting(self, iters: int | None) -> "Setting":
        from slotattn_fast.train.setting import Setting

        if self.data is not None:
            require_one_meaning(self.data)
        return Setting(iters=iters, num_slots=self.num_slots, max_objects=self.max_objects, data=self.data)


@dataclass(frozen=True)
class Eval(_Trained):
    """Measure finished runs on held-out scenes: as in training, or with other iterations, slots or scenes.

    Of several runs, such as those of several seeds, also the mean, and which of them failed.
    """

    runs: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]", help="Run folders.", help_behavior_hint="")
    ] = ()
    iters: Annotated[
        tuple[int, ...] | None,
        DisallowNone,
        arg(
            metavar="N [N ...]",
            help="Iterations T of Slot Attention, one evaluation each; after the runs.",
            help_behavior_hint="(default: as in training)",
        ),
    ] = None


@dataclass(frozen=True)
class Show(_Trained):
    """Draw held-out scenes as a finished run sees them: slots.png, and of object discovery iterations.png."""

    run: Annotated[Positional[Path | None], arg(metavar="RUN", help="The run folder.", help_behavior_hint="")] = None
    iters: Annotated[int | None, _N_AS_TRAINED] = None
    """Iterations T of Slot Attention."""
    out: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: the run's; of --pretrained, this one)")
    ] = None
    """Folder to draw into. What is not as in training is drawn into one in the run's."""


def run_trained(command: Eval | Show) -> None:
    """Runs one command. Raises `UsageError`, `RunError`, `DataError` or OSError for what a user can meet."""
    try:
        match command:
            case Eval():
                _eval(command)
            case Show():
                _show(command)
    except ValueError as error:
        raise UsageError(error) from error


def _eval(command: Eval) -> None:
    from slotattn_fast.report.tables import ap_by_objects_lines, ap_table_lines, evaluation_line, seeds_lines
    from slotattn_fast.train.evaluation import evaluate, keep, require_complete
    from slotattn_fast.train.run_folder import differences

    runs = tuple(dict.fromkeys(_folders(command, command.runs)))
    configs = [require_complete(run) for run in runs]  # before the first is measured
    if command.iters == ():
        raise ValueError("iters: got nothing, expected one or more integers")
    other = sorted({name for config in configs for name in differences(configs[0], config, but=("seed",))})
    for iters in command.iters or (None,):
        results = {}
        for run in runs:
            setting = command.setting(iters)
            result = evaluate(run, setting, command.device)
            name = command.pretrained or str(run)
            print(evaluation_line(name, result), flush=True)
            if command.pretrained is None:
                try:
                    keep(result, run, setting)
                except OSError as error:  # as of a run that is another's
                    print(f"slotattn: {error}; the evaluation is not kept", file=sys.stderr)
            results[name] = result
        predicted = {name: result for name, result in results.items() if "ap" in result}
        for name, result in predicted.items():
            if result["ap_by_objects"]:
                print("\n".join(ap_by_objects_lines(name, result)))
        if predicted:
            print("\n".join(ap_table_lines(predicted)))
        if not other and len(runs) > 1:
            print("\n".join(seeds_lines(results)))
    if other:
        print(f"no mean: these are not seeds of one experiment, for they differ in {', '.join(other)}")


def _show(command: Show) -> None:
    from slotattn_fast.train.evaluation import show

    (run,) = _folders(command, () if command.run is None else (command.run,))
    out = command.out if command.pretrained is None else command.out or Path()
    print("\n".join(map(str, show(run, command.setting(command.iters), command.device, out))))


def _folders(command: _Trained, runs: tuple[Path, ...]) -> tuple[Path, ...]:
    if bool(runs) == (command.pretrained is not None):
        raise ValueError("give a run folder, or --pretrained NAME" + ", and not both" * bool(runs))
    return runs if command.pretrained is None else (pretrained(command.pretrained),)
