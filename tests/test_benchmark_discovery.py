"""The benchmark of object discovery at toy size: what is wrong is not timed, and every row is in the table."""

from dataclasses import replace

import pytest
import torch

from benchmarks import discovery
from benchmarks.discovery import ON_CPU, ON_GPU, OURS, PARTS, PLAIN, Step
from slotattn_fast.models.discovery import ObjectDiscovery

TINY = {
    "image_size": 11,
    "encoder_channels": 8,
    "slot_dim": 8,
    "hidden_dim": 8,
    "decoder_channels": 8,
    "decoder_strides": (2, 1),
    "broadcast_size": 6,
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = replace(discovery.PRESETS["tetrominoes"], model=TINY)
    monkeypatch.setattr(discovery, "PRESETS", {**discovery.PRESETS, "tiny": preset})


def test_every_measurement_is_a_row_and_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"plain": 200.0, "ours": 50.0, "ours, bf16": 30.0}
    monkeypatch.setattr(discovery, "peak_mib", lambda contender, *_: peaks[str(contender)])
    rows = discovery.measure("tiny", batch=2, rounds=2, threads=1)
    assert [row["contender"] for row in rows if row["part"] == "step"] == [str(contender) for contender in ON_CPU]
    for contender in ("plain", "ours"):
        parts = [(row["part"], row["pass"]) for row in rows if row["contender"] == contender and row["part"] != "step"]
        assert sorted(parts) == sorted(
            [(part, direction) for part in PARTS for direction in ("forward", "backward")] + [("Adam", "update")]
        )
    assert all(row["ms_p20"] <= row["ms_median"] <= row["ms_p80"] for row in rows)
    assert rows[0]["faster"] == 1
    conditions = dict.fromkeys(("device", "threads", "torch", "rounds", "product_gflops", "commit", "date", "where"), 1)
    text = discovery.table([{**row, **conditions} for row in rows])
    assert "| tiny | 2 | ours | " in text
    assert " 50 MiB | 0.25 | " in text
    assert all(f"| {part} | backward | " in text for part in PARTS)


def test_a_step_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ObjectDiscovery.loss
    monkeypatch.setattr(ObjectDiscovery, "loss", lambda self, *given: right(self, *given) * 1.001)
    with pytest.raises(AssertionError, match=r"tiny: ours is off by 1\.0e-03 of"):
        discovery.measure("tiny", batch=2, rounds=2, threads=1)


def test_a_step_trains() -> None:
    for contender in (PLAIN, OURS):
        step = Step(contender, "tiny", 2)
        before = [p.clone() for p in step.model.parameters()]
        step()
        assert all((p != old).any() for p, old in zip(step.model.parameters(), before, strict=True))


@pytest.mark.parametrize("contender", [PLAIN, OURS], ids=str)
def test_the_parts_make_the_step(contender: discovery.Contender) -> None:
    whole, parts = Step(contender, "tiny", 2), Step(contender, "tiny", 2)
    whole.gradients()
    assert all(seconds > 0 for seconds in parts.parts().values())
    expected = dict(whole.model.named_parameters())
    for name, parameter in parts.model.named_parameters():
        if not name.startswith("slot_attention.slots_"):  # the slots that they draw are given to the parts
            torch.testing.assert_close(parameter.grad, expected[name].grad)


def test_peak_memory_is_that_of_the_activations() -> None:
    # What the plain decoder keeps for the backward pass: 64 channels of the copied slots, 32 of three layers.
    kept = 8 * 4 * 35 * 35 * (64 + 3 * 32) * 4 / 2**20
    assert kept < discovery._peak_mib_here(PLAIN, "tetrominoes", 8, 1) < 6 * kept


def test_contenders() -> None:
    assert [str(contender) for contender in ON_GPU[::3]] == ["plain", "ours, compiled", "plain, bf16, compiled"]
