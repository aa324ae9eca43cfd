"""Tables and plots of an experiment by its form: scores of arms, or curves over iterations or objects."""

from collections.abc import Mapping, Sequence

from slotattn_fast.paper.document import Table
from slotattn_fast.paper.experiments import Experiment
from slotattn_fast.paper.plots import Bars, Curves, Panel, Values
from slotattn_fast.paper.results import Found, columns, is_property, score
from slotattn_fast.report.tables import DISTANCES, score_text
from slotattn_fast.train.setting import Setting

_OBJECTS = [str(number) for number in range(3, 11)]


def score_tables(experiment: Experiment, found: Sequence[Found]) -> list[Table]:
    """A table for each kind of score: our rows, then the published."""
    blocks: list[Table] = []
    for head in dict.fromkeys(columns(each) for each in found):
        rows = [["AP in %, by distance" if head == DISTANCES else "%", "seeds", *head]]
        standing = ", unverified" if head == DISTANCES else ""
        for each in (each for each in found if columns(each) == head):
            (setting,) = each.results
            cells = {distance: each.values(setting, distance) for distance in _keys(head)}
            rows.append([each.arm.label, str(len(each.results[setting])), *map(score, cells.values())])
            if outliers := each.outliers():
                kept = [{seed: v for seed, v in values.items() if seed not in outliers} for values in cells.values()]
                rows.append([f"{each.arm.label}, without the failed", str(len(kept[0])), *map(score, kept)])
            if each.arm.published:
                rows.append([f"{each.arm.label} (published{standing})", "", *map(score_text, each.arm.published)])
        rows += [
            [f"{quoted.label} (quoted by the paper{standing})", "", *map(score_text, quoted.published)]
            for quoted in experiment.quoted
            if len(quoted.published) == len(head)
        ]
        blocks.append(Table(rows))
    return blocks


def _keys(head: tuple[str, ...]) -> tuple[str | None, ...]:
    return head if head == DISTANCES else (None,)


def _known(values: Mapping[int, float | None]) -> Values:
    return [value for value in values.values() if value is not None]


def score_bars(found: Sequence[Found]) -> list[Panel]:
    panels: list[Panel] = []
    for head in dict.fromkeys(columns(each) for each in found):
        of_head = [each for each in found if columns(each) == head]
        task = _common_task([each.arm.label for each in of_head])
        arms = {}
        for each in of_head:
            (setting,) = each.results
            values = [_known(each.values(setting, distance)) for distance in _keys(head)]
            arms[each.arm.label.removeprefix(f"{task}: ")] = values
        panels.append(Bars(task, *(("distance", "AP, %") if head == DISTANCES else ("", f"{head[0]}, %")), head, arms))
    return panels


def _common_task(labels: Sequence[str]) -> str:
    """What all of "TASK: arm" begin with, if it is one."""
    tasks = {label.rpartition(": ")[0] for label in labels}
    return tasks.pop() if len(tasks) == 1 else ""


def _lines(found: Found, alone: bool) -> dict[str, str | None]:
    """The distances that the arm has a line for, by a name that leaves out the arm if it is `alone`."""
    if not is_property(found.training):
        return {found.arm.label: None}
    return {("" if alone else f"{found.arm.label}, ") + f"AP ({distance})": distance for distance in DISTANCES}


def iteration_table(found: Sequence[Found]) -> Table:
    rows = [["iterations when testing, %", *(str(setting.iters) for setting in found[0].results)]]
    for each in found:
        for label, distance in _lines(each, len(found) == 1).items():
            rows.append([label, *(score(each.values(setting, distance)) for setting in each.results)])
    return Table(rows)


def iteration_curves(found: Sequence[Found]) -> list[Panel]:
    lines = {
        label: [_known(each.values(setting, distance)) for setting in each.results]
        for each in found
        for label, distance in _lines(each, len(found) == 1).items()
    }
    x = [setting.iters for setting in found[0].results if setting.iters is not None]
    ylabel = "AP, %" if is_property(found[0].training) else "FG-ARI, %"
    return [Curves("", "iterations when testing", ylabel, x, lines)]


def _ap_by_objects(found: Found, setting: Setting, distance: str, number: str) -> dict[int, float | None]:
    values: dict[int, float | None] = {}
    for seed, result in found.results[setting].items():
        if number in result["ap_by_objects"]:
            ap = result["ap_by_objects"][number][distance]
            values[seed] = None if ap is None else 100 * ap
    return values


def object_table(found: Sequence[Found]) -> Table:
    rows = [["objects in the scene, AP in %", *_OBJECTS]]
    for each in found:
        (setting,) = each.results
        for label, distance in _lines(each, len(found) == 1).items():
            assert distance is not None
            rows.append([label, *(score(_ap_by_objects(each, setting, distance, number)) for number in _OBJECTS)])
    return Table(rows)


def object_curves(found: Sequence[Found]) -> list[Panel]:
    panels: list[Panel] = []
    for each in found:
        (setting,) = each.results
        lines = {
            label: [_known(_ap_by_objects(each, setting, distance or "", number)) for number in _OBJECTS]
            for label, distance in _lines(each, alone=True).items()
        }
        x = [int(number) for number in _OBJECTS]
        panels.append(Curves(each.arm.label, "objects in the scene", "AP, %", x, lines))
    return panels
