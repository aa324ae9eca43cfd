"""The tuner of the kernels over the slots, at toy size and interpreted."""

import pytest
import torch
from slotattn_fast.kernels import launch

pytest.importorskip("triton")
from slotattn_fast.kernels import slot_ops

from benchmarks import gpu_tune_slots
from benchmarks.reasons import NOT_MEASURED

HERE = {"gpu": "none"}


@pytest.mark.parametrize("kernel", gpu_tune_slots.KERNELS)
def test_candidates_give_what_float64_gives(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table, used = slot_ops.update_config, []
    monkeypatch.setattr(gpu_tune_slots, "error", lambda *x, old=gpu_tune_slots.error: used.append(x) or old(*x))
    found = gpu_tune_slots.tune(gpu_tune_slots.TOY_SIZES[0], kernel, True, 60)
    assert len(found["rows"]) == gpu_tune_slots.TOY_CANDIDATES
    assert all(row["error"] <= found["allowed"] < 1e-5 for row in found["rows"])
    assert slot_ops.update_config is table
    # Candidates sum in other orders, so that each of them is its own.
    results = [found for found, _ in used[: gpu_tune_slots.TOY_CANDIDATES]]
    assert not all(torch.equal(x, y) for x, y in zip(results[0], results[2], strict=True))


def test_candidates_are_distinct_and_begin_with_the_table() -> None:
    for kernel in gpu_tune_slots.KERNELS:
        configs = gpu_tune_slots.candidates(8, kernel)
        assert len(configs) == len(set(configs)) <= 12
        assert configs[0] == launch.update_config(64, 64, 128, 8, precision="tf32")
        assert configs[2].precision == "ieee"


def test_a_wrong_result_shows_and_a_failure_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    good, *_ = gpu_tune_slots.candidates(2, "update_fwd")
    configs = [good._replace(block_slots=32), good._replace(block_chunk=24), good]  # half of a slot; no power of two
    monkeypatch.setattr(gpu_tune_slots, "candidates", lambda *_: configs)
    found = gpu_tune_slots.tune((3, 5, 2), "update_fwd", True, 60)
    wrong, failed, right = found["rows"]
    assert not wrong["error"] <= found["allowed"]
    assert NOT_MEASURED in failed
    assert right["error"] <= found["allowed"]


def test_report() -> None:
    row = gpu_tune_slots.candidates(8, "update_fwd")[0]._asdict()
    rows = [row | {"us": 5.0, "us_cold": 6.5, "error": 2e-7}, row | {NOT_MEASURED: "OutOfResources"}]
    record = {"64 x 7 x 8 update_fwd": {"found": {"rows": rows, "allowed": 1e-6}, "conditions": HERE}}
    text = gpu_tune_slots.report(record)
    assert "| 64 x 7 x 8 update_fwd | tf32 | 16 | 64 | 8 | 8 | 2 | True | 5.00 | 6.50 | 2.0e-07 | 1.0e-06 |" in text
    assert "not measured OutOfResources" in text
