"""The GPU stage of training steps: targets, what is timed and what is not, and a toy run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_steps, gpu_steps_table, measure
from benchmarks.discovery import DiscoveryStep
from benchmarks.gpu_record import UNFINISHED, Found
from benchmarks.gpu_steps import GraphedStep
from benchmarks.gpu_steps_table import GRAPH, TARGETS
from benchmarks.property import PropertyStep
from benchmarks.reasons import NOT_MEASURED
from benchmarks.step_contenders import Step
from slotattn_fast.models.convolution import SameConvTranspose2d
from slotattn_fast.train.config import PRESETS
from slotattn_fast.train.tasks import task_of

TOYS = [(DiscoveryStep, "tetrominoes"), (PropertyStep, "clevr6")]
HERE = {"gpu": "none", "commit": "a"}


def measured(**ms: float) -> Found:
    rows: list[dict[str, Any]] = [
        {"contender": name, "ms": (x, x, x), "faster": ms["plain"] / x, "error": 1e-3, "peak_bytes": int(x * 2**20)}
        for name, x in ms.items()
    ]
    rows.append({"contender": "ours, bf16, compiled", NOT_MEASURED: "InductorError: a | b"})
    part = {"part": "encoder", "direction": "forward", "ms": 1.5}
    by_part = {"plain": [part], "ours, bf16": [{**part, "ms": 0.5}]}
    return {"rows": rows, "batch": 64, "steps": 500_000, "parts": by_part}


def reached(found: Found, part: str = "clevr6") -> dict[str, list[str]]:
    text = gpu_steps.report({part: {"found": found, "conditions": HERE}})
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()[2 : 2 + len(TARGETS)]]
    return {cells[2]: cells[3:6] for cells in lines if cells[1] == part}


def test_targets_beside_what_was_reached() -> None:
    assert {target.part for target in TARGETS} < set(gpu_steps.parts(toy=False))
    found = measured(**{"plain": 180.0, "plain, bf16, compiled": 54.0, GRAPH: 36.0})
    assert list(reached(found).values()) == [
        ["at least 4", "5", "met"],
        ["at least 1.3", "1.5", "met"],
        ["at most 5", "5", "met"],
        ["at most 0.5", "0.2", "met"],
    ]
    found = measured(**{"plain": 180.0, "plain, bf16, compiled": 54.0, GRAPH: 90.0})
    assert [cells[1:] for cells in reached(found).values()] == [
        ["2", "**missed**"],
        ["0.6", "**missed**"],
        ["12.5", "**missed**"],
        ["0.5", "met"],
    ]
    assert all(cells[1] == NOT_MEASURED for cells in reached(measured(plain=180.0)).values())
    found = {**measured(**{"plain": 96.0, GRAPH: 12.0}), "steps": 150_000}
    assert list(reached(found, "clevr10 properties").values()) == [
        ["at least 4", "8", "met"],
        ["at most 1", "0.5", "met"],
    ]


def test_the_most_important_parts_come_first() -> None:
    assert list(gpu_steps.parts(toy=False))[:2] == [gpu_steps_table.CLEVR6, gpu_steps_table.SETS]


def test_tables_show_every_row_and_why_there_is_no_time() -> None:
    record = {
        "clevr6": {"found": measured(**{"plain": 180.0, GRAPH: 36.0}), "conditions": HERE},
        "tetrominoes": {"found": {UNFINISHED: "Traceback\nRuntimeError: no memory\n"}, "conditions": HERE},
    }
    text = gpu_steps.report(record)
    assert f"| {GRAPH} | 36.000 | 36.000 | 36.000 | 5.00 | 36 MiB | 5.0 | 1.0e-03 |" in text
    assert "InductorError: a / b" in text
    assert "| encoder | forward | 1.500 | 0.500 |" in text
    assert "not measured: RuntimeError: no memory" in text


def test_toy_stage(tmp_path: Path) -> None:
    assert gpu.run("steps", tmp_path, toy=True)
    record = json.loads((tmp_path / "toy-gpu-steps.json").read_text())
    compiled = {"ours, bf16, compiled", "plain, bf16, compiled"}
    for part, further in (("tetrominoes", compiled), ("clevr6 properties", set())):
        found = record[part]["found"]
        names = [row["contender"] for row in found["rows"]]
        assert names[:2] == ["plain", "plain, bf16"]
        assert {GRAPH, "ours", "ours, bf16"} | further == set(names[2:])
        assert list(found["parts"]) == ["plain", "ours, bf16"]
    rows = [row for part in record.values() for row in part["found"]["rows"]]
    assert all("error" in row and "ms" not in row and NOT_MEASURED not in row for row in rows)
    assert "nothing here is a measurement" in (tmp_path / "toy-gpu-steps.md").read_text()


def test_one_part_alone(tmp_path: Path) -> None:
    assert gpu.run("steps", tmp_path, toy=True, only=gpu_steps_table.CONVOLUTIONS)
    record = json.loads((tmp_path / "toy-gpu-steps.json").read_text())
    assert list(record) == [gpu_steps_table.CONVOLUTIONS]
    with pytest.raises(SystemExit, match="--only: got 'clevr', expected one of 'tetrominoes', 'clevr6 properties', "):
        gpu.run("steps", tmp_path, toy=True, only="clevr")


@pytest.mark.parametrize(("kind", "preset"), TOYS)
def test_the_gradients_of_a_graphs_step_are_those_of_the_trainings_loss(kind: type[Step], preset: str) -> None:
    step = GraphedStep(kind, preset, 2)
    task = task_of(PRESETS[kind.task][preset])
    model = task.model().to(memory_format=torch.channels_last)
    model.load_state_dict(step.model.state_dict())
    assert step.batch["images"].dtype == torch.uint8
    with torch.autocast("cpu", torch.bfloat16):
        expected = task.loss(model, {**step.batch, "noise": step.batch["noise"].bfloat16()})
    expected.backward()
    loss, gradients = step.gradients()
    torch.testing.assert_close(loss, expected.detach())
    for found, (name, p) in zip(gradients, sorted(model.named_parameters()), strict=True):
        torch.testing.assert_close(found, p.grad, msg=name)
    assert any((p != q).any() for p, q in zip(model.parameters(), step.model.parameters(), strict=True))


@pytest.mark.parametrize(("kind", "preset"), TOYS)
def test_a_contender_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch, kind: type[Step], preset: str) -> None:
    right = kind.fast_class.loss
    wrong = 1.5  # the plain loop in bfloat16 is 0.05 off
    monkeypatch.setattr(kind.fast_class, "loss", lambda self, *given: right(self, *given) * wrong)
    found = gpu_steps.compare(kind, preset, True, 60)
    for row in found["rows"]:
        assert (NOT_MEASURED in row) == row["contender"].startswith("ours"), row
    assert list(found["parts"]) == ["plain"]
    assert not gpu_steps.passed({"tetrominoes": {"found": found, "conditions": HERE}})


def test_a_peak_that_is_not_found_loses_its_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(step: Step) -> int:
        if step.bf16 and not step.is_ours:
            raise RuntimeError("no memory")
        return 7

    monkeypatch.setattr(gpu_steps, "peak_beside_adam", peak)
    monkeypatch.setattr(measure, "milliseconds", lambda calls, rounds, failures: {name: [1.0, 2.0] for name in calls})
    rows = {row["contender"]: row for row in gpu_steps.compare(PropertyStep, "clevr6", True, 60)["rows"]}
    assert rows["plain, bf16"][NOT_MEASURED] == "RuntimeError: no memory"
    assert "ms" not in rows["plain, bf16"]
    assert rows["plain"]["peak_bytes"] == rows["ours, bf16"]["peak_bytes"] == 7
    assert rows[GRAPH]["peak_bytes"] is None  # that of its capture, on a GPU
    assert all("ms" in row for name, row in rows.items() if name != "plain, bf16")


def test_a_convolution_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = SameConvTranspose2d.forward
    monkeypatch.setattr(SameConvTranspose2d, "forward", lambda self, maps: right(self, maps).roll(1, -1))
    found = gpu_steps.convolutions(True, 60)
    assert [NOT_MEASURED in row for row in found["rows"]] == [False, True] * len(gpu_steps.TOY_LAYERS)
    assert not gpu_steps.passed({gpu_steps_table.CONVOLUTIONS: {"found": found, "conditions": HERE}})


def test_measured_times_come_into_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def milliseconds(
        calls: dict[str, measure.Call], rounds: int, failures: dict[str, str] | None = None
    ) -> dict[str, list[float]]:
        if failures is not None:
            failures["ours, bf16"] = "RuntimeError: in a later step"
        times = {name: [8.0, 16.0, 24.0] if name == "plain" else [1.0, 2.0, 3.0] for name in calls}
        return {name: ms for name, ms in times.items() if failures is None or name not in failures}

    for module in (measure, gpu_steps):  # the steps, and the convolutions
        monkeypatch.setattr(module, "milliseconds", milliseconds)
    found = gpu_steps.compare(PropertyStep, "clevr6", True, 60)
    assert (found["batch"], found["steps"]) == (1, 150_000)
    rows = {row["contender"]: row for row in found["rows"]}
    assert rows[GRAPH]["ms"][1] == 2
    assert rows[GRAPH]["faster"] == 8
    assert rows["ours, bf16"][NOT_MEASURED] == "RuntimeError: in a later step"
    assert "ms" not in rows["ours, bf16"]
    assert list(found["parts"]) == ["plain"]
    found = gpu_steps.convolutions(True, 60)
    assert [row["ms"][1] for row in found["rows"]] == [2] * 2 * len(gpu_steps.TOY_LAYERS)
    assert "| 2.000 |" in gpu_steps.report({gpu_steps_table.CONVOLUTIONS: {"found": found, "conditions": HERE}})
