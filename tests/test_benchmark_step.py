"""The benchmarks of a training step, at toy size: what is wrong is not timed, and every row is in the table."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import conditions, step_contenders, training_step
from benchmarks.discovery import DiscoveryStep
from benchmarks.property import PropertyStep, clearness
from benchmarks.reasons import NOT_MEASURED
from benchmarks.step_contenders import ON_CPU, ON_GPU, OURS, PLAIN, Contender, Step, agreeing
from slotattn_fast.matching import match

ENCODER = {"encoder_channels": 8, "slot_dim": 8, "hidden_dim": 8}
TINY = {
    "discovery": {"image_size": 11, "decoder_channels": 8, "decoder_strides": (2, 1), "broadcast_size": 6},
    "property": {"image_size": 16, "num_slots": 10, "classifier_dim": 8},
}
PARTS = {
    "discovery": (
        "encoder",
        "slot attention",
        "decoder's first layer",
        "decoder's other layers",
        "mixture and loss",
    ),
    "property": ("encoder", "slot attention", "classifier", "matching and loss"),
}
MAKERS = {contender: partial(DiscoveryStep, contender, "tiny", 2) for contender in ON_CPU}
KINDS = pytest.mark.parametrize("kind", [DiscoveryStep, PropertyStep], ids=lambda kind: kind.task)


def table(rows: list[training_step.Row]) -> str:
    conditions = dict.fromkeys(("device", "threads", "torch", "product_gflops", "commit", "date", "command"), 1)
    return training_step.table([{**row, **conditions} for row in rows], Path("folder/file.csv"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for task, sizes in TINY.items():
        presets = training_step.PRESETS[task]
        monkeypatch.setitem(presets, "tiny", replace(presets["quick"], model={**ENCODER, **sizes}))


@KINDS
def test_every_measurement_is_a_row_and_in_the_table(monkeypatch: pytest.MonkeyPatch, kind: type[Step]) -> None:
    peaks = {"plain": 200.0, "ours": 50.0, "plain, bf16": 120.0, "ours, bf16": 30.0}
    monkeypatch.setattr(training_step, "peak_mib", lambda kind, contender, *_: peaks[str(contender)])
    (rows,) = training_step.measure(kind, {"tiny": 2}, rounds=2, threads=1)
    assert [row["contender"] for row in rows if row["part"] == "step"] == [str(contender) for contender in ON_CPU]
    for contender in ("plain", "ours"):
        parts = [(row["part"], row["pass"]) for row in rows if row["contender"] == contender and row["part"] != "step"]
        assert sorted(parts) == sorted(
            [(part, direction) for part in PARTS[kind.task] for direction in ("forward", "backward")]
            + [("Adam", "update")]
        )
    assert all(row["ms_p20"] <= row["ms_median"] <= row["ms_p80"] for row in rows)
    assert rows[0]["faster_median"] == 1
    text = table(rows)
    assert ": `1`, folder/file.csv.\n" in text
    assert all(f"| tiny | 2 | {contender} | " in text for contender in ON_CPU)
    assert " 50 MiB | 0.25 | " in text
    assert all(f"| {part} | backward | " in text for part in PARTS[kind.task])


@KINDS
def test_a_step_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch, kind: type[Step]) -> None:
    right = kind.fast_class.loss
    monkeypatch.setattr(kind.fast_class, "loss", lambda self, *given: right(self, *given) * 1.001)
    monkeypatch.setattr(training_step, "peak_mib", lambda *_: 1.0)
    *_, rows = training_step.measure(kind, {"tiny": 2}, rounds=3, threads=1)
    plain, ours, _, low = (row for row in rows if row["part"] == "step")
    assert ours[NOT_MEASURED].startswith("off by 1.0e-03 of the norm, and ")
    assert ours["ms_median"] == ours["peak_mib"] == ""
    assert plain["rounds"] == 3
    assert plain["ms_median"] > 0
    assert low["faster_median"] > 0  # 0.1 % is within bfloat16
    assert {row["contender"] for row in rows if row["part"] != "step"} == {"plain"}
    text = table(rows)
    assert "| tiny | 2 | ours | off by 1.0e-03 of the norm, " in text
    assert "| encoder | forward | - / " in text


def test_an_error_that_is_no_number_is_an_error() -> None:
    exact = (torch.tensor(1.0), [torch.ones(3), torch.ones(2)])
    assert step_contenders.error(exact, exact) == 0
    for wrong in (torch.nan, 1.1):
        for found in (
            (torch.tensor(wrong), exact[1]),
            (exact[0], [torch.full((3,), wrong), torch.ones(2)]),
            (exact[0], [torch.ones(3), torch.full((2,), wrong)]),
        ):
            assert not step_contenders.error(found, exact) < 0.01


def test_faster_is_plain_by_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "peak_mib", lambda *_: 1.0)
    measured = training_step.Measured(DiscoveryStep, "tiny", 2, 1)
    measured.times, measured.parts = {PLAIN: [8.0, 10.0], OURS: [2.0, 2.0]}, {}
    plain, ours, *low = measured.rows()[: len(ON_CPU)]
    assert (plain["faster_median"], ours["faster_median"], *(row["faster_median"] for row in low)) == (1, 4.5, "", "")
    assert [step.optimizer.defaults["fused"] for step in measured.steps.values()] == [None, True, None, True]
    text = table([row | {"rounds": 2} for row in (plain, ours)])
    assert "| ours | 2 ms (2 to 2) | **4.5x** (4.2 to 4.8) | " in text


def test_an_image_is_of_one_colour_but_for_noise() -> None:
    pixels = step_contenders.drawn_pixels(8, 16, 3, torch.Generator().manual_seed(0))
    assert (pixels.shape, pixels.dtype) == ((8, 16, 16, 3), torch.uint8)
    lightness = pixels.float().flatten(1, 2)
    assert 10 < lightness.std(1).mean() < 25  # of 64 levels
    assert 30 < lightness.mean(1).std() < 70  # of 192


def test_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "peak_mib", lambda *_: 1.0)
    monkeypatch.setattr(training_step.FlopCounterMode, "get_total_flops", lambda self: 3e9)
    measured = training_step.Measured(DiscoveryStep, "tiny", 2, 1)
    measured.parts = {OURS: [{("encoder", "forward"): seconds} for seconds in (0.002, 0.003)]}
    rows = measured.rows()
    assert rows[-1]["ms_median"] == 2.5
    assert [row["gflop"] for row in rows[: len(ON_CPU)]] == [3, 3, "", ""]
    monkeypatch.setattr(training_step, "wall_times", lambda calls, *_, **__: {name: [1000.0, 2000.0] for name in calls})
    assert training_step.product_gflops() == 2 * 2048**3 / 1e9


def test_twice_the_plain_loops_error_is_allowed_beside_the_kinks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert step_contenders.KINKS == 2e-5
    for error, accepted in ((2.19e-5, True), (2.21e-5, False)):
        errors = iter((1e-6, error, 1e-2, 0.02))
        monkeypatch.setattr(step_contenders, "error", lambda *_, errors=errors: next(errors))
        steps, _ = agreeing(DiscoveryStep, "tiny", 2, MAKERS)
        assert (OURS in steps) is accepted
        assert len(steps) == 3 + accepted


def test_without_the_plain_loop_nothing_is_held_against(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: torch.nn.Module, *given: torch.Tensor) -> torch.Tensor:
        if self.training and given[0].dtype == torch.float32:
            raise RuntimeError("out of memory")
        return right(self, *given)

    right = DiscoveryStep.plain_class.loss
    monkeypatch.setattr(DiscoveryStep.plain_class, "loss", fails)
    steps, notes = agreeing(DiscoveryStep, "tiny", 2, MAKERS)
    assert steps == {}
    assert notes[PLAIN] == {NOT_MEASURED: "RuntimeError: out of memory"}
    assert notes[OURS][NOT_MEASURED] == "the plain loop, which tells the error that is allowed, failed"


@pytest.mark.parametrize("on_gpu", [False, True])
def test_rounds_of_a_gpu_begin_with_steps_that_do_not_count(monkeypatch: pytest.MonkeyPatch, on_gpu: bool) -> None:
    warm_ups, parts = [], []

    def wall_times(
        calls: dict[Contender, Step], rounds: int, warm_up: int, failures: dict[Contender, str]
    ) -> dict[Contender, list[float]]:
        assert list(calls) == list(ON_CPU)
        warm_ups.append(warm_up)
        return {contender: [1.0] * rounds for contender in calls}

    monkeypatch.setattr(training_step, "wall_times", wall_times)
    monkeypatch.setattr(training_step, "peak_mib", lambda *_: 1.0)
    monkeypatch.setattr(Step, "parts", lambda step: parts.append(step.is_ours) or {})
    measured = training_step.Measured(DiscoveryStep, "tiny", 2, 1)
    assert all(step.optimizer.state for step in measured.steps.values())  # Adam's, which the first step makes
    monkeypatch.setattr(training_step, "on_gpu", lambda: on_gpu)
    for number in range(3):
        measured.go_round(number)
    assert warm_ups == [3 * on_gpu, 0, 0]
    assert list(measured.times.values()) == [[1.0] * 3] * len(ON_CPU)
    assert list(measured.parts.values()) == [[{}] * 3] * 2
    assert sorted(parts) == [False] * (3 + 3 * on_gpu) + [True] * (3 + 3 * on_gpu)


def test_the_products_rate_is_the_best_of_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter((2.0, 5.0, 3.0))
    monkeypatch.setattr(training_step, "product_gflops", lambda: next(rates))
    monkeypatch.setattr(training_step, "peak_mib", lambda *_: 1.0)
    *_, rows = training_step.measure(DiscoveryStep, {"tiny": 2}, rounds=3, threads=1)
    assert {row["product_gflops"] for row in rows} == {5}


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_step_that_fails_while_it_is_timed_loses_its_rows_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_parts: bool
) -> None:
    made: list[Step] = []

    def fails(step: Step) -> object:
        if step.is_ours and not step.bf16:
            made.append(step)
            if len(made) == 2:
                raise RuntimeError("no memory")
        return right(step)

    name = "parts" if in_parts else "__call__"
    right = getattr(Step, name)
    monkeypatch.setattr(Step, name, fails)
    monkeypatch.setattr(training_step, "peak_mib", lambda *_: 1.0)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--quick", "--threads", "1", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        training_step.main(DiscoveryStep, {}, {"tiny": 2}, "")
    assert end.value.code == 1
    rows = conditions.read_rows(tmp_path / "discovery-cpu.csv")
    steps = {row["contender"]: row for row in rows if row["part"] == "step"}
    assert steps["ours"][NOT_MEASURED] == "RuntimeError: no memory"
    assert steps["ours"]["ms_median"] == ""
    assert all(float(row["ms_median"]) > 0 for name, row in steps.items() if name != "ours")
    assert {row["contender"] for row in rows if row["part"] != "step"} == {"plain"}
    assert "| ours | RuntimeError: no memory |" in (tmp_path / "discovery-cpu.md").read_text()


def test_rounds_and_threads_are_those_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(training_step, "peak_mib", lambda *_: 1.0)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--rounds", "2", "--threads", "1", "--out", str(tmp_path)])
    training_step.main(DiscoveryStep, {"tiny": 2}, {}, "")
    rows = conditions.read_rows(tmp_path / "discovery-cpu.csv")
    assert {(row["rounds"], row["threads"]) for row in rows} == {("2", "1")}
    assert threads == [1]


def test_batches_on_a_gpu_are_the_papers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: list[object] = []
    monkeypatch.setattr(training_step, "on_gpu", lambda: True)
    monkeypatch.setattr(training_step, "device_name", lambda: "some GPU")
    monkeypatch.setattr(training_step, "measure", lambda kind, batches, *_: found.append(batches))
    monkeypatch.setattr(training_step, "write_results", lambda name, *_: found.append(name) or [])
    monkeypatch.setattr(sys, "argv", ["benchmark", "--threads", "1", "--out", str(tmp_path)])
    training_step.main(DiscoveryStep, {"tetrominoes": 32, "clevr6": 2}, {}, "")
    assert found == [{"tetrominoes": 64, "clevr6": 64}, "discovery-cuda"]


def test_a_compiled_contender_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda call: compiled.append(call) or call)
    for contender in ON_GPU:
        step = DiscoveryStep(contender, "tiny", 2)
        assert compiled == ([step.loss] if contender.compiled else [])
        compiled.clear()


@pytest.mark.parametrize("bf16", [False, True])
def test_parts_are_timed_as_they_are_called(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    step, weight = DiscoveryStep(Contender("ours", bf16), "tiny", 2), torch.ones((), requires_grad=True)
    now, called = [0.0], []

    def part(name: str, seconds: float) -> training_step.Any:
        def call(x: torch.Tensor) -> torch.Tensor:
            now[0] += seconds
            called.append((name, torch.is_autocast_enabled("cpu")))
            return x * weight

        return call

    def update() -> None:
        now[0] += 5

    monkeypatch.setattr(step, "calls", lambda: {"first": part("first", 1), "second": part("second", 2)})
    monkeypatch.setattr(step, "clock", lambda: now[0])
    monkeypatch.setattr(step.optimizer, "step", update)
    assert step.parts() == {
        ("first", "forward"): 1,
        ("second", "forward"): 2,
        ("second", "backward"): 0,
        ("first", "backward"): 0,
        ("Adam", "update"): 5,
    }
    assert called == [("first", bf16), ("second", bf16)]


@KINDS
def test_what_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch, kind: type[Step]) -> None:
    def too_much(self: Step) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(kind, "double", too_much)
    (rows,) = training_step.measure(kind, {"tiny": 2}, rounds=2, threads=1)
    assert [row[NOT_MEASURED] for row in rows] == ["RuntimeError: out of memory"] * len(ON_CPU)
    assert "| plain | RuntimeError: out of memory |" in table(rows)


def test_every_round_goes_through_all_presets_and_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    order, rounds_kept = [], []

    def one_round(self: training_step.Measured, number: int) -> None:
        order.append((self.preset, number))
        go_round(self, number)

    def write_rows(path: Path, rows: list[training_step.Row]) -> None:
        rounds_kept.append((path.name, len(order), {row["rounds"] for row in rows}))
        kept(path, rows)

    go_round, kept = training_step.Measured.go_round, conditions.write_rows
    monkeypatch.setitem(training_step.PRESETS["discovery"], "other", training_step.PRESETS["discovery"]["tiny"])
    monkeypatch.setattr(training_step.Measured, "go_round", one_round)
    monkeypatch.setattr(conditions, "write_rows", write_rows)
    monkeypatch.setattr(training_step, "peak_mib", lambda *_: 1.0)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--quick", "--threads", "1", "--out", str(tmp_path)])
    training_step.main(DiscoveryStep, {}, {"tiny": 2, "other": 2}, "")
    assert order == [(name, number) for number in range(3) for name in ("tiny", "other")]
    unfinished = "discovery-cpu-unfinished.csv"
    assert rounds_kept == [(unfinished, 4, {2}), (unfinished, 6, {3}), ("discovery-cpu.csv", 6, {3})]


@KINDS
def test_a_step_trains(kind: type[Step]) -> None:
    for contender in (PLAIN, OURS):
        step = kind(contender, "tiny", 2)
        before = [p.clone() for p in step.model.parameters()]
        step()
        assert all((p != old).any() for p, old in zip(step.model.parameters(), before, strict=True))


@KINDS
@pytest.mark.parametrize("contender", [PLAIN, OURS], ids=str)
def test_the_parts_make_the_step(kind: type[Step], contender: Contender) -> None:
    whole, parts = kind(contender, "tiny", 2), kind(contender, "tiny", 2)
    whole.gradients()
    assert all(seconds > 0 for seconds in parts.parts().values())
    expected = dict(whole.model.named_parameters())
    for name, parameter in parts.model.named_parameters():
        if not name.startswith("slot_attention.slots_"):  # the slots that they draw are given to the parts
            torch.testing.assert_close(parameter.grad, expected[name].grad)


@KINDS
def test_only_ours_has_images_in_channels_last_order(kind: type[Step]) -> None:
    plain, ours = (kind(contender, "tiny", 2).given[0] for contender in (PLAIN, OURS))
    assert torch.equal(plain, ours)
    assert plain.is_contiguous()
    assert ours.is_contiguous(memory_format=torch.channels_last)
    plain, ours = (next(kind(contender, "tiny", 2).model.encoder.parameters()) for contender in (PLAIN, OURS))
    assert not plain.is_contiguous(memory_format=torch.channels_last)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_peak_memory_is_that_of_the_activations() -> None:
    # What the plain decoder keeps for the backward pass: 64 channels of the copied slots, 32 of three layers.
    kept = 8 * 4 * 35 * 35 * (64 + 3 * 32) * 4 / 2**20
    peaks = [training_step.peak_mib(DiscoveryStep, PLAIN, "tetrominoes", 8, 1) for _ in range(3)]
    assert kept < min(peaks) <= max(peaks) < 1.03 * min(peaks) < 4 * kept


@KINDS
def test_the_command_writes_the_tasks_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[Step]
) -> None:
    monkeypatch.setattr(training_step, "peak_mib", lambda *_: 1.0)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--quick", "--threads", "1", "--out", str(tmp_path)])
    training_step.main(kind, {"tiny": 3}, {"tiny": 2}, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{kind.task}-cpu.csv", f"{kind.task}-cpu.md"]
    assert "| tiny | 2 | plain | " in capsys.readouterr().out


def test_contenders() -> None:
    assert [str(contender) for contender in ON_GPU[::3]] == ["plain", "ours, compiled", "plain, bf16, compiled"]


def test_rounding_does_not_decide_which_slots_objects_get() -> None:
    step = PropertyStep(PLAIN, "tiny", 8)
    images, targets, noise = step.given
    predictions = step.model(images, noise).detach()
    rounded = predictions + 0.001 * torch.randn(predictions.shape, generator=torch.Generator().manual_seed(0))
    pairs = (match((x[:, None] - targets[:, :, None]).square().sum(-1))[1] for x in (predictions, rounded))
    real = targets[..., -1] > 0  # padding may have any of the others
    assert torch.equal(*(columns[real] for columns in pairs))


def test_clearness_is_that_of_the_cheapest_exchange() -> None:
    targets = torch.zeros(2, 3, 19)
    targets[:, 0, 0], targets[:, 1, 0] = 1, 0.5
    predictions = targets.clone()
    targets[1, 1] = predictions[1, 1] = 0  # one object and two rows of padding
    predictions[:, 2, 0] = 0.25
    # Squares: of 0.5 and 0, of 1 and 0, which exchange their slots.
    growth = [0.25**2 + 0.5**2 - 0.25**2, 0.75**2 + 1 - 0.25**2]
    assert clearness(predictions, targets).tolist() == pytest.approx([x / 2 / 19 for x in growth])
