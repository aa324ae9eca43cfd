"""The comparison of the module at toy size: what is wrong is not timed, what cannot run says why, rows replace rows."""

import os
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import contenders, module
from benchmarks.cost import Shape
from benchmarks.measure import Call, Rates, Sample
from benchmarks.module import Case
from benchmarks.reasons import NOT_MEASURED

RATES = Rates(copy_bytes_per_s=1e9, flop_per_s=1e10)
EAGER = ("torch", "reference", "slot-attention")


def shape(B: int = 2, N: int = 20, K: int = 3, T: int = 2) -> Shape:
    return module.shape_of(B, N, K, torch.float32, T=T)


def times(shape: Shape, which: str, names: tuple[str, ...]) -> list[module.Row]:
    return module.times(Case(shape, which, names), [], 2, RATES)


@pytest.mark.usefixtures("no_interpreter")
@pytest.mark.parametrize("which", contenders.PASSES)
def test_all_contenders_agree_and_are_timed(which: str) -> None:
    rows = {row["contender"]: row for row in times(shape(), which, ("triton", *EAGER))}
    assert rows["triton"][NOT_MEASURED] == "no GPU"
    for name in EAGER:
        row = rows[name]
        assert row[NOT_MEASURED] == ""
        assert row["error"] < 1e-5
        assert row["ms_p20"] <= row["ms_median"] <= row["ms_p80"]
        assert row["of_limit"] == pytest.approx(max(row["floor_ms"], row["product_ms"]) / row["ms_median"])
    assert rows["torch"]["times_ours_median"] == 1
    assert rows["reference"]["times_ours_median"] > 0


def test_times_are_of_the_calls_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    durations = {"reference": 4.0, "torch": 2.0}

    def agreeing(given: object, makers: dict[str, object]) -> object:
        calls = {name: (lambda name=name: order.append(name)) for name in makers}
        return calls, [{"contender": name, "error": 0.0} for name in makers]

    def timed(call):
        call()
        return Sample(durations[order[-1]] * (10 if len(order) <= 6 else 1), 1.0)

    monkeypatch.setattr(module, "agreeing", agreeing)
    monkeypatch.setattr("benchmarks.measure._timed", timed)
    plain, own = module.times(Case(shape(), "forward", ("reference", "torch")), [], 3, RATES)
    assert [set(order[at : at + 2]) for at in range(0, len(order), 2)] == [set(durations)] * 6  # 3 do not count
    assert (own["ms_median"], plain["ms_median"], plain["times_ours_median"]) == (2, 4, 2)


def test_times_ours_is_the_median_of_the_rounds_ratios() -> None:
    ms = {"reference": (4.0, 2.0, 12.0), "torch": (1.0, 2.0, 4.0)}
    before = [{name: Sample(values[i], 1.0) for name, values in ms.items()} for i in range(3)]
    none_more: dict[str, list[Sample]] = {name: [] for name in ms}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "samples", lambda *_: none_more)
        patched.setattr(module, "agreeing", lambda *_: (none_more, [{"contender": name} for name in ms]))
        plain, own = module.times(Case(shape(), "forward", tuple(ms)), before, 0, RATES)
    assert (plain["ms_median"], own["ms_median"], plain["times_ours_median"]) == (4, 2, 3)  # of 4, 1 and 3


def test_the_limit_is_the_larger() -> None:
    assert module.limit_ms({"floor_ms": 1, "product_ms": "2"}) == 2
    assert module.limit_ms({"floor_ms": 3, "product_ms": 2}) == 3


def test_forward_is_without_gradients() -> None:
    class Looking(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            enabled.append(torch.is_grad_enabled())
            return 2 * inputs

    enabled: list[bool] = []
    inputs = torch.ones(2, requires_grad=True)
    for which in contenders.PASSES:
        contenders.step(Looking(), inputs, {}, which)
    assert enabled == [False, True]


def test_twice_the_references_error_is_allowed_and_no_more() -> None:
    of = contenders.problem(shape(), "forward")
    exact = contenders.exact_results(of)

    def off_by(part: float) -> contenders.Call:
        return lambda: [x * (1 + part) for x in exact]

    for reference, allowed in ((0.0, 1e-5), (1e-6, 1.2e-5)):
        wrong = {"torch": 0.98 * allowed, "compiled": 1.02 * allowed, "reference": reference}
        calls, _ = contenders.agreeing(of, {name: lambda part=part: off_by(part) for name, part in wrong.items()})
        assert sorted(calls) == ["reference", "torch"]


def test_threads_are_those_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(module, "rows_of", lambda *given: found.append(given[-1]) or [])
    monkeypatch.setattr(sys, "argv", ["module", "forward", "--threads", "1", "--out", str(tmp_path)])
    module.main()
    assert found == [1, 1]


@pytest.mark.parametrize(
    ("contender", "why", "code"),
    [("torch", "off by 1", 1), ("torch", "", 0), ("torch", module.NO_ROOM, 0), ("compiled", "off by 1", 0)],
)
def test_what_is_wrong_with_ours_is_the_exit_status(
    contender: str, why: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = module.row(shape(), "forward", contender, module.TIME) | {NOT_MEASURED: why, "ms_median": 1, "of_limit": 1}
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(module, "rows_of", lambda *given: [[found]])
    monkeypatch.setattr(sys, "argv", ["module", "forward", "--threads", "1", "--out", str(tmp_path)])
    if code:
        with pytest.raises(SystemExit) as end:
            module.main()
        assert end.value.code == code
    else:
        module.main()


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_a_contender_that_fails_while_it_is_timed_is_lost_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make(which: str, given: contenders.Problem) -> Call:
        def call() -> list[torch.Tensor]:
            if which == name:
                made.append(1)
                if len(made) == 3:
                    raise RuntimeError("no memory")
            return right()

        right = original(which, given)
        return call

    original = contenders.make
    monkeypatch.setattr(contenders, "make", make)
    rows = {row["contender"]: row for row in times(shape(), "forward", EAGER)}
    other = "reference" if name == "torch" else "torch"
    assert rows[name][NOT_MEASURED] == "RuntimeError: no memory"
    assert rows[name]["ms_median"] == rows[name]["times_ours_median"] == ""
    assert rows[other]["ms_median"] > 0
    assert rows[other]["times_ours_median"] == ("" if name == "torch" else 1)


@pytest.mark.parametrize("threads", ["0", "100000", "99999999999"])
def test_no_more_threads_than_there_are_cores(
    threads: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["module", "forward", "--threads", threads])
    with pytest.raises(SystemExit):
        module.main()
    assert f"--threads: got {threads}, expected an integer, at least 1 and at most {os.cpu_count()}" in (
        capsys.readouterr().err
    )


def test_rounds_of_all_sweeps_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is slow in the first of three sweeps, and one contender is wrong in the last."""
    sweep = 0

    def agreeing(given: object, makers: dict[str, object]) -> object:
        names = ["reference", "torch"] if sweep == 2 else ["reference", "torch", "slot-attention"]
        rows = [{"contender": name, "error": 0.0} for name in names]
        rows += [{"contender": name, NOT_MEASURED: "off"} for name in makers if name not in names]
        return dict.fromkeys(names), rows

    def samples(calls: dict[str, object], rounds: int, warm_up: int, failures: object) -> dict[str, list[Sample]]:
        assert warm_up == 1
        slow = 3 if sweep == 0 else 1
        ms = {"reference": 4.0 * slow, "torch": 2.0 * slow**2, "slot-attention": 3.0}
        return {name: [Sample(ms[name] + 0.01 * number, 1.0) for number in range(rounds)] for name in calls}

    def rates(dtype: torch.dtype, rounds: int) -> Rates:
        return Rates(2.0, 3.0) if sweep == 1 else Rates(1.0, 4.0)

    monkeypatch.setattr(module, "QUICK_SHAPES", ((2, 20, 3), (2, 30, 3)))
    monkeypatch.setattr(module, "agreeing", agreeing)
    monkeypatch.setattr(module, "samples", samples)
    monkeypatch.setattr(module, "rates", rates)
    found = []
    for number, rows in enumerate(module.rows_of(["forward"], True, 3, 2, 1), 1):
        found.append({row["contender"]: row for row in rows})
        sweep = number // 2
    assert [rows["torch"]["N"] for rows in found] == [20, 30, 20, 30, 20, 30]
    assert [rows["torch"]["rounds"] for rows in found] == [2, 2, 4, 4, 6, 6]
    assert [rows["torch"]["sweeps"] for rows in found] == [1, 1, 2, 2, 3, 3]
    first, last = found[0], found[4]
    assert first["torch"]["ms_median"] == pytest.approx(18.005)
    assert (last["torch"]["ms_p20"], last["torch"]["ms_median"]) == pytest.approx((2, 2.01))
    assert last["torch"]["ms_p80"] == 18  # the slow sweep is in the spread
    assert last["reference"]["times_ours_median"] == pytest.approx(2, rel=0.01)
    assert last["reference"]["cpu_ms"] == 1
    assert found[2]["slot-attention"]["rounds"] == 4
    assert last["slot-attention"][NOT_MEASURED] == "off"
    assert last["slot-attention"]["ms_median"] == ""
    assert (last["torch"]["copy_gb_per_s"], last["torch"]["product_gflop_per_s"]) == (2e-9, 4e-9)


def test_shapes_of_several_parts_are_measured_once() -> None:
    timed = module.cases(module.PARTS, False)
    assert len({(case.shape, case.which) for case in timed}) == len(timed)
    assert {name for case in timed for name in case.names} == set(contenders.NAMES)
    assert all("compiled" in case.names for case in module.held(["memory"], False))
    forward = module.cases(["forward"], False)
    assert [case for case in timed if case.which == "forward"] == forward
    assert {case.shape.N for case in module.held(["scaling"], False)} == set(module.SCALED["N"])
    assert module.cases(["memory"], False) == module.held(["forward", "backward"], False) == []


def test_limits_are_those_of_the_rates() -> None:
    unit_ms = 1e3 * 2 * 20 * 64 * 4 / 1e9
    product_ms = 1e3 * 2 * 2 * 20 * 3 * 64 / 1e10
    forward, both = (module.limits(shape(), which, RATES) for which in contenders.PASSES)
    assert forward["floor_ms"] == pytest.approx(unit_ms)
    assert forward["design_ms"] == pytest.approx(2 * unit_ms)
    assert forward["product_ms"] == pytest.approx(2 * 2 * product_ms)
    assert both["floor_ms"] == pytest.approx(3 * unit_ms)
    assert both["design_ms"] == pytest.approx(5 * unit_ms)
    assert both["product_ms"] == pytest.approx(7 * 2 * product_ms)


def test_a_contender_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = contenders.ours

    def wrong(plain: torch.nn.Module, backend: str) -> torch.nn.Module:
        made = ours(plain, backend)
        with torch.no_grad():
            made.to_v.weight[0, 0] += 0.01
        return made

    monkeypatch.setattr(contenders, "ours", wrong)
    rows = {row["contender"]: row for row in times(shape(), "forward", EAGER)}
    assert "of the norm, and" in rows["torch"][NOT_MEASURED]
    assert rows["torch"]["ms_median"] == ""
    assert rows["reference"]["ms_median"] > 0
    assert rows["reference"]["times_ours_median"] == ""


def test_a_gradient_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    of = contenders.problem(shape(), "forward+backward")
    exact = contenders.exact_results(of)
    assert len(exact) == 2 + len(contenders.parameters(of.plain))
    for number in range(len(exact)):
        found = [x.clone() for x in exact]
        found[number] += 1
        assert contenders.difference(found, exact) > 1e-3
        found[number][:] = torch.nan
        assert contenders.difference(found, exact) != contenders.difference(found, exact)


def test_without_the_reference_nobody_is_timed() -> None:
    def broken() -> contenders.Call:
        raise RuntimeError("no memory")

    of = contenders.problem(shape(), "forward")
    calls, rows = contenders.agreeing(of, {"reference": broken, "torch": lambda: contenders.make("torch", of)})
    assert calls == {}
    assert [row[NOT_MEASURED] for row in rows] == [
        "RuntimeError: no memory",
        "the reference, which tells the error that is allowed, failed",
    ]


def test_a_comparison_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(of: object) -> None:
        raise RuntimeError("cannot allocate")

    monkeypatch.setattr(contenders, "exact_results", broken)
    assert [row[NOT_MEASURED] for row in times(shape(), "forward", EAGER)] == ["RuntimeError: cannot allocate"] * 3


def test_what_cannot_run_says_why_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    rows = {row["contender"]: row for row in times(shape(), "forward", contenders.NAMES)}
    assert rows["compiled"][NOT_MEASURED] == "RuntimeError: no compiler"
    assert rows["slot-attention"][NOT_MEASURED] == "the package slot-attention is not installed"
    assert rows["reference"]["ms_median"] > 0


def test_a_shape_that_would_not_fit_is_not_tried() -> None:
    huge = shape(B=10**9)
    for rows in (times(huge, "forward", EAGER), module.memory(Case(huge, "forward", EAGER), 1)):
        assert all(row[NOT_MEASURED].startswith("not enough memory: the comparison needs about ") for row in rows)


def test_peak_memory_is_what_a_call_holds_beyond_what_it_returns() -> None:
    # The weights of attention and their normalised copies, [B, K, N] each, and keys and values, [B, N, D], T times.
    B, N, T = 2, 8192, 2
    least = 2 * B * N * 64 * 4 / 2**20  # keys and values
    beyond, in_all = module.peak_mib(shape(B, N, T=T), "forward+backward", "reference", 1)
    assert least < beyond < 12 * least
    assert in_all > beyond + 50  # PyTorch itself
    assert module.peak_mib(shape(B, N, T=T), "forward+backward", "torch", 1)[0] < least
