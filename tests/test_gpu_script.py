"""`python -m benchmarks.gpu` without a GPU: what it records and skips, its tables, its candidates, and toy runs."""

import json
import sys
import time
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from slotattn_fast.kernels import ops
from slotattn_fast.kernels.launch import attend_config

from benchmarks import (
    contenders,
    gpu,
    gpu_once,
    gpu_orders,
    gpu_prove,
    gpu_record,
    gpu_table,
    gpu_time,
    gpu_tune,
    measure,
)
from benchmarks.cost import WRITTEN, Shape
from benchmarks.gpu_record import UNFINISHED, Found, is_done, load, run_parts
from benchmarks.reasons import NOT_MEASURED

HERE = {"gpu": "none", "commit": "a", "date": "today", "command": "this"}


def test_finished_parts_are_kept_and_the_others_run_again(tmp_path: Path) -> None:
    path, calls = tmp_path / "folder" / "stage.json", []

    def part(name: str, found: Found) -> gpu_record.Part:
        return lambda seconds: calls.append(name) or found

    def broken(seconds: float) -> Found:
        calls.append("broken")
        raise ValueError("on purpose")

    parts = {"good": part("good", {"x": 1}), "broken": broken, "cut": part("cut", {UNFINISHED: "too long"})}
    assert run_parts(path, parts, HERE, limit=60) == ["broken", "cut"]
    record = load(path)
    assert record["good"]["found"] == {"x": 1}
    assert record["good"]["conditions"] == HERE
    assert "on purpose" in record["broken"]["found"][UNFINISHED]
    parts["broken"] = part("mended", {"x": 2})
    assert run_parts(path, parts, HERE | {"date": "tomorrow"}, limit=60) == ["cut"]
    assert calls == ["good", "broken", "cut", "mended", "cut"]
    assert run_parts(path, parts, HERE | {"commit": "b"}, limit=60) == ["cut"]
    assert calls[5:] == ["good", "mended", "cut"]


def test_what_was_found_before_outlives_a_part_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    for commit, found in (("a", {"x": 1}), ("b", {UNFINISHED: "cut"}), ("c", {UNFINISHED: "cut again"})):
        run_parts(path, {"part": lambda seconds, found=found: found}, HERE | {"commit": commit}, limit=60)
    record = load(path)["part"]
    assert record["found"] == {UNFINISHED: "cut again"}
    assert (record["before"]["found"], record["before"]["conditions"]["commit"]) == ({"x": 1}, "a")
    run_parts(path, {"part": lambda seconds: {"x": 2}}, HERE, limit=60)
    assert load(path)["part"].keys() == {"found", "seconds", "conditions"}


def test_no_part_begins_that_may_not_end_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(gpu_record.time, "monotonic", lambda: now)

    def part(seconds: float) -> Found:
        nonlocal now
        now += 40
        return {"left": seconds}

    assert run_parts(tmp_path / "stage.json", dict.fromkeys("abc", part), HERE, limit=100) == ["c"]
    assert [entry["found"]["left"] for entry in load(tmp_path / "stage.json").values()] == [100, 60]


@pytest.mark.parametrize("name", ["gpu", "commit"])
def test_a_result_of_another_machine_or_commit_counts_for_nothing(name: str) -> None:
    entry = {"found": {}, "conditions": HERE}
    assert is_done(entry, HERE)
    assert not is_done(entry, HERE | {name: "other"})
    assert not is_done(None, HERE)


def test_outcomes_of_a_test_report() -> None:
    report = ET.fromstring(
        '<testsuites><testsuite><testcase name="good"/><testcase name="bad"><failure message="off by 1"/></testcase>'
        '<testcase name="worse"><error message="no"/></testcase>'
        '<testcase name="idle"><skipped message="why"/></testcase></testsuite></testsuites>'
    )
    found = gpu_prove.outcomes(report)
    assert found == {"passed": 1, "failed": {"bad": "off by 1", "worse": "no"}, "skipped": ["why"]}
    record = {"tests": {"found": found, "conditions": HERE}}
    assert not gpu_prove.passed(record)
    text = gpu_prove.report(record)
    assert "| tests | 1 | 2 | 1 |" in text
    assert "- tests: bad: off by 1" in text
    only_skipped = ET.fromstring('<x><testcase name="idle"><skipped message="no GPU"/></testcase></x>')
    assert gpu_prove.outcomes(only_skipped)[NOT_MEASURED] == "no GPU"
    assert UNFINISHED in gpu_prove.outcomes(ET.fromstring("<testsuites/>"))


def test_a_test_that_ends_its_process_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conftest.py").write_text(Path("tests/conftest.py").read_text())
    path = tmp_path / "test_some.py"
    path.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "@pytest.mark.slow\ndef test_slow(): raise ValueError\n"
        "@pytest.mark.parametrize('i', range(3))\ndef test_bad(i): raise RuntimeError('CUDA error: on purpose')\n"
        "def test_last(): pass\n"
    )
    monkeypatch.setattr(gpu_prove, "PARALLEL", ("-n", "2", *gpu_prove.PARALLEL[2:]))
    found = gpu_prove.run_tests(str(path), False, 60)
    assert found["passed"] == 2
    assert found["failed"].keys() == {f"test_bad[{i}]" for i in range(3)}
    assert all("crashed" in why for why in found["failed"].values())
    assert "on purpose" in found["stderr"]


def test_what_pytest_did_not_come_to_the_end_of_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_prove, "PARALLEL", ())
    path = tmp_path / "test_some.py"
    path.write_text("import time\ndef test_endless(): time.sleep(60)\n")
    # On a busy machine it takes pytest longer to come so far.
    assert any("test_endless" in gpu_prove.run_tests(str(path), False, seconds)[UNFINISHED] for seconds in (3, 20))
    path.write_text("import nothing_of_this_name\n")
    assert "nothing_of_this_name" in gpu_prove.run_tests(str(path), False, 60)[UNFINISHED]


def test_sanitizer_output_is_kept_where_it_finds_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in its place, which reports as it does."""
    program = tmp_path / "compute-sanitizer"
    program.write_text('#!/bin/sh\necho "========= ERROR SUMMARY: 2 errors for $2"\nexit 9\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = gpu_prove.sanitize("memcheck", False, 10)
    assert found["summary"] == ["========= ERROR SUMMARY: 2 errors for memcheck"]
    assert "2 errors" in found["failed"]["memcheck"]


def test_a_sanitizer_that_takes_too_long_ends_with_what_it_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, child = tmp_path / "compute-sanitizer", tmp_path / "child"
    program.write_text(f"#!/bin/sh\necho so far\nsleep 60 &\necho $! > {child}\nwait\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    began = time.monotonic()
    assert "so far" in gpu_prove.sanitize("memcheck", False, 2)[UNFINISHED]
    assert time.monotonic() - began < 30  # not until the child ends by itself, which holds the pipe
    status = Path(f"/proc/{child.read_text().strip()}/stat")
    until = time.monotonic() + 10
    while status.exists() and status.read_text().split()[2] != "Z" and time.monotonic() < until:
        time.sleep(0.05)
    assert not status.exists() or status.read_text().split()[2] == "Z"  # whose parent has not asked for it yet


def measured(**ms: float) -> Found:
    """A call over 7 passes of 1 GB, on a device that copies 4 TB/s."""
    rows: list[dict[str, Any]] = [
        {"contender": name.replace("_", ", "), "ms": (x, x, x), "times_ours": x / ms["ours"], "error": 1e-3}
        for name, x in ms.items()
    ]
    rows[-1]["peak_bytes"] = 40_000_000
    rows.append({"contender": "max-autotune", NOT_MEASURED: "InductorError: a | b"})
    return {
        "rows": rows,
        "inputs_bytes": 10**9,
        "units": 7,
        "fewest_units": 3,
        "copy_bytes_per_s": 4e12,
        "bf16_flop_per_s": 8e14,
    }


def test_bytes_and_memory_of_a_measurement() -> None:
    found = measured(reference=30.0, ours=2.5)
    assert gpu_table.part_of_copy(found) == pytest.approx(7e9 / 2.5e-3 / 4e12)
    assert gpu_table.memory_share(found) == 0.04
    assert gpu_table.times_faster("reference")(found) == 12
    assert gpu_table.times_faster("max-autotune")(found) is None


def test_targets_beside_what_was_reached() -> None:
    name = gpu_table.part_name(gpu_table.DISCOVERY, "bfloat16", "forward+backward")
    assert name in gpu_time.parts(toy=False)
    record = {name: {"found": measured(reference=30.0, ours=2.5), "conditions": HERE}}
    lines = gpu_table.targets(record, gpu_table.TARGETS, "heading").splitlines()
    reached = {line.split("|")[2].strip(): [cell.strip() for cell in line.split("|")[3:6]] for line in lines[2:6]}
    assert reached[gpu_table.EAGER] == ["at least 10", "12", "met"]
    assert reached[gpu_table.AUTOTUNED] == ["at least 4", NOT_MEASURED, ""]
    assert reached["part of the copy's bytes/s over 7 units"] == ["at least 0.8", "0.7", "**missed**"]
    assert reached["peak memory over the inputs'"] == ["at most 0.05", "0.04", "met"]
    assert len(lines) == 2 + len(gpu_table.TARGETS)
    assert all(NOT_MEASURED in line for line in lines[6:])
    assert [line.split("|")[6].strip() for line in lines[2:6]] == ["a", "", "a", "a"]  # the commit


def test_the_summary_has_a_line_a_shape_of_all_that_was_finished() -> None:
    where = HERE | {"driver": "1", "torch": "2", "triton": "3", "python": "4"}
    plain = gpu_table.part_name(gpu_table.DISCOVERY, "bfloat16", "forward")
    autotuned = gpu_table.part_name(gpu_table.DISCOVERY, "bfloat16", "forward", autotuned=True)
    record: gpu_record.Record = {
        "profile": {"found": {"rows": [{"kernel": "some"}]}, "conditions": where},
        plain: {"found": measured(reference=30.0, ours=2.5), "conditions": where},
        autotuned: {
            "found": {UNFINISHED: "cut"},
            "conditions": where | {"commit": "c"},
            "before": {"found": measured(**{"max-autotune": 5.0, "ours": 9.0}), "conditions": where | {"commit": "b"}},
        },
        "1 x 2 x 3 float32 forward": {"found": {UNFINISHED: "cut"}, "conditions": where},
    }
    lines = gpu_table.summary(record, Path("here.json")).splitlines()
    assert lines[0].startswith("none, driver 1, torch 2, Triton 3, Python 4, commit a, b, today: `python -m ")
    assert "here.json. Medians" in lines[0]
    assert lines[2] == "| B x N x K | dtype | pass | reference | ours | max-autotune |"
    assert lines[4:] == ["| 64 x 16384 x 7 | bfloat16 | forward | 30.00 | 2.50 (38 MiB) | 5.00 |"]
    assert gpu_table.summary({plain: {"found": {UNFINISHED: "cut"}, "conditions": where}}, Path()) == "not measured\n"


def test_the_parts_with_targets_come_first() -> None:
    names = list(gpu_time.parts(toy=False))
    wanted = {target.part for target in gpu_table.TARGETS}
    assert set(names[1 : 1 + len(wanted)]) == wanted
    assert len(names) == len(set(names)) == 1 + 2 * 2 * 2 * 3


def test_contenders_table_says_why_there_is_no_time() -> None:
    text = gpu_table.report({"part": {"found": measured(reference=30.0, ours=2.5), "conditions": HERE}})
    assert "| reference | 30.0000 | 30.0000 | 30.0000 | 12.00 |" in text
    assert "InductorError: a / b" in text
    assert "copy 4.00 TB/s" in text
    assert "70% of the copy's bytes/s over 7 units, 3.3 times that of 3" in text


def test_a_part_that_failed_says_why() -> None:
    found = {UNFINISHED: "Traceback\n  a line\nRuntimeError: no memory\n"}
    record = {"part": {"found": found, "conditions": HERE}}
    assert "not measured: RuntimeError: no memory" in gpu_table.report(record)
    assert "| part | | not measured: RuntimeError: no memory |" in gpu_tune.report(record)
    for name in ("3 x 5 x 2 update_fwd", f"{gpu_orders.NAME}, 3 x 70 x 3 forward"):
        assert "RuntimeError: no memory" in gpu_tune.report({name: record["part"]})
    assert "RuntimeError: no memory" in gpu_prove.report(record)


def test_difference_is_that_of_the_worst_and_shows_nan() -> None:
    exact = [torch.ones(2), torch.ones(3), torch.full((2,), 3.0), torch.full((1,), 1.0)]
    found = [torch.ones(2), torch.full((3,), 1.1), *exact[2:]]
    assert contenders.difference(found, exact) == pytest.approx(0.1)
    assert contenders.difference(exact[:1], exact[:1]) == 0
    found[2] = found[2] * torch.nan
    assert not contenders.difference(found, exact) <= 1e9


@pytest.mark.parametrize("size", gpu_table.SIZES, ids=str)
@pytest.mark.parametrize("which", gpu_tune.PASSES)
def test_candidates_cover_all_inputs_once(which: str, size: tuple[int, int, int]) -> None:
    B, N, K = size
    base = attend_config(B, N, gpu_tune.WIDTH, K, 1, 2, 132, which)
    configs = gpu_tune.candidates(base, B, N, 132, which)
    assert configs[0] == base
    assert len(configs) == len(set(configs)) >= 20
    for config in configs:
        covered = config.block_n * config.blocks
        assert covered * config.splits >= N > covered * (config.splits - 1)
        assert config[1:4] == base[1:4]
    assert {config.num_warps for config in configs} == set(gpu_tune.WARPS)


def test_only_a_gain_beyond_noise_is_proposed() -> None:
    base = attend_config(64, 16384, 64, 7, 1, 2, 132, "forward")._asdict()
    rows = [base | {"ms": 1.0}, base | {"ms": 0.98, "block_n": 64}, base | {NOT_MEASURED: "OutOfResources"}]
    record = {"shape forward": {"found": {"rows": rows}, "conditions": HERE}}
    assert "| 64, 4, 3, 8, 128, yes | 0.9800 | 1.02x | no |" in gpu_tune.report(record)
    rows[1]["ms"] = 0.5
    assert "| 2.00x | yes |" in gpu_tune.report(record)


def test_every_kernel_is_launched_once_or_more() -> None:
    shape = gpu_once.SHAPE._replace(N=40)
    launched = gpu_once.launches(shape, "cpu") + gpu_once.launches_on_chip(shape, "cpu")
    launched += gpu_once.mixture_launches(torch.bfloat16, "cpu") + gpu_once.matching_launches(torch.bfloat16, "cpu")
    assert set(launched) == set(WRITTEN)


def test_contenders_agree_at_toy_size() -> None:
    found = gpu_time.compare((2, 20, 3), "bfloat16", "forward+backward", False, True, 60)
    assert {"reference", "compiled", "ours"} <= {row["contender"] for row in found["rows"]}
    assert [row.get(NOT_MEASURED) for row in found["rows"]] == [None] * len(found["rows"])
    assert not any("ms" in row for row in found["rows"])
    assert found["inputs_bytes"] == 2 * 20 * 64 * 2
    assert "copy_bytes_per_s" not in found


def test_calls_are_timed_in_turns_and_the_first_rounds_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that each call puts forward, in place of a GPU's events."""
    now, order = 0.0, []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = torch.nan

        def record(self) -> None:
            self.at = now

        def elapsed_time(self, end: "Event") -> float:
            return end.at - self.at

    def call(name: str, milliseconds: float) -> measure.Call:
        def run() -> list[torch.Tensor]:
            nonlocal now
            now += milliseconds * (10 if len(order) < 2 * measure.WARM_UP else 1)
            order.append(name)
            return []

        return run

    monkeypatch.setattr(measure, "on_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: empty(1))
    times = measure.milliseconds({"a": call("a", 1.0), "b": call("b", 2.0)}, rounds=4)
    assert times == {"a": [1.0] * 4, "b": [2.0] * 4}
    assert [set(order[at : at + 2]) for at in range(0, len(order), 2)] == [{"a", "b"}] * (4 + measure.WARM_UP)


def milliseconds(calls: dict[str, measure.Call], rounds: int, failures: dict[str, str]) -> dict[str, list[float]]:
    """In place of measuring; "compiled" fails."""
    failures.update({"compiled": "RuntimeError: in its replay"} if "compiled" in calls else {})
    slow, fast = [4.0, 8.0, 12.0], [1.0, 2.0, 3.0]
    return {name: fast if name == "ours" else slow for name in calls if name != "compiled"}


def test_a_call_that_fails_leaves_the_others_where_that_is_asked_for() -> None:
    def broken() -> list[torch.Tensor]:
        raise RuntimeError("on purpose")

    calls, failures = {"good": list, "bad": broken}, {}
    assert measure.milliseconds(calls, 1, failures) == {"good": []}
    assert failures == {"bad": "RuntimeError: on purpose"}
    with pytest.raises(RuntimeError, match="on purpose"):
        measure.milliseconds(calls, 1)


def test_measured_times_come_into_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "milliseconds", milliseconds)
    monkeypatch.setattr(gpu_time, "peak_bytes", lambda call: 5)
    found = gpu_time.compare((2, 20, 3), "float32", "forward", False, True, 60)
    rows = {row["contender"]: row for row in found["rows"]}
    assert rows["ours"]["ms"][1] == 2
    assert rows["reference"]["times_ours"] == 4
    assert gpu_table.times_faster("reference")(found) == 4
    assert rows["ours"]["peak_bytes"] == 5
    assert rows["compiled"][NOT_MEASURED] == "RuntimeError: in its replay"
    assert "ms" not in rows["compiled"]
    assert json.loads(json.dumps(found))["units"] == 3


def test_a_contender_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = contenders.ours

    def wrong(plain: torch.nn.Module, backend: str) -> torch.nn.Module:
        module = ours(plain, backend)
        with torch.no_grad():
            module.to_q.weight.mul_(1.5)
        return module

    monkeypatch.setattr(contenders, "ours", wrong)
    found = gpu_time.compare((2, 20, 3), "float32", "forward", False, True, 60)
    (row,) = (row for row in found["rows"] if row["contender"] == "ours")
    assert "is allowed" in row[NOT_MEASURED]
    assert not gpu_time.passed({"part": {"found": found, "conditions": HERE}})


def test_candidates_run_and_a_wrong_one_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    table = ops.attend_config
    found = gpu_tune.tune((2, 70, 3), "inputs", True, 60)
    assert [row.get("error", 1) <= 1e-2 for row in found["rows"]] == [True] * (1 + gpu_tune.TOY_CANDIDATES)
    assert ops.attend_config is table
    monkeypatch.setattr(
        gpu_tune, "candidates", lambda base, *sizes: [base, base._replace(block_n=16, blocks=1, splits=1)]
    )  # the second leaves inputs out
    found = gpu_tune.tune((2, 70, 3), "forward", True, 60)
    assert NOT_MEASURED not in found["rows"][0]
    assert "off by" in found["rows"][1][NOT_MEASURED]


def test_a_candidate_that_fails_while_it_is_timed_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(calls: dict[str, measure.Call], rounds: int, failures: dict[str, str]) -> dict[str, list[float]]:
        failures["1"] = "RuntimeError: illegal address"
        return {name: [1.0, 2.0, 3.0] for name in calls if name != "1"}

    monkeypatch.setattr(gpu_tune, "milliseconds", timed)
    rows = gpu_tune.tune((2, 70, 3), "forward", True, 60)["rows"]
    assert [(row.get("ms"), row.get(NOT_MEASURED)) for row in rows] == [
        (2.0, None),
        (None, "RuntimeError: illegal address"),
        (2.0, None),
    ]


def test_candidates_are_timed_in_graphs_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch takes the CPU longer than the kernel the device."""
    graphs, now = [], 0.0
    monkeypatch.setattr(gpu_tune, "in_graph", lambda call: graphs.append(call) or call)
    found = gpu_tune.tune((2, 70, 3), "forward", True, 60)
    assert len(graphs) == len(found["rows"]) == 1 + gpu_tune.TOY_CANDIDATES

    def clock() -> float:
        nonlocal now
        now += 20
        return now

    monkeypatch.setattr(gpu_tune.time, "monotonic", clock)  # 36 of the 60 seconds are for compiling
    found = gpu_tune.tune((2, 70, 3), "forward", True, 60)
    assert [row.get(NOT_MEASURED) for row in found["rows"]] == [None, "no time left", "no time left"]


def test_what_the_compiler_puts_into_graphs_is_checked_as_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in its first call, which is no replay: a contender whose later calls are wrong is not timed."""

    def wrong_in_replay(module: torch.nn.Module, mode: str | None) -> Any:
        calls: list[None] = []

        def run(*given: Any, **named: Any) -> torch.Tensor:
            calls.append(None)
            return module(*given, **named) + (len(calls) > 2)

        return run

    given = contenders.problem(Shape(2, 20, 64, 3, 64, 3, torch.float32), "forward")
    monkeypatch.setattr(torch, "compile", wrong_in_replay)
    calls, rows = contenders.agreeing(
        given, {name: partial(contenders.make, name, given) for name in ("reference", "max-autotune")}
    )
    assert list(calls) == ["reference"]
    assert "is allowed" in rows[1][NOT_MEASURED]


def test_results_that_a_stage_writes_do_not_make_the_commit_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_record, "checkout", lambda: "1234567")
    assert gpu_record.conditions(True, None)["commit"] == "1234567"  # of conditions.py, which leaves results out
    assert gpu_record.conditions(True, "abc")["commit"] == "abc"


def test_tests_are_run_and_counted() -> None:
    found = gpu_prove.run_tests(gpu_prove.TESTS["launch table against float64"], True, 120)
    assert (found["passed"], found["failed"]) == (1, {})


def test_a_toy_stage_is_marked_and_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the orders of launches, which test_gpu_orders.py compares."""
    monkeypatch.setattr(gpu_orders, "compare", lambda *given: {"rows": []})
    assert gpu.run("tune", tmp_path, toy=True)
    assert {path.name for path in tmp_path.iterdir()} == {"toy-gpu-tune.json", "toy-gpu-tune.md"}
    assert "nothing here is a measurement" in (tmp_path / "toy-gpu-tune.md").read_text()
    assert "not measured" in (tmp_path / "toy-gpu-tune.md").read_text()
    record = json.loads((tmp_path / "toy-gpu-tune.json").read_text())
    assert all(entry["conditions"]["gpu"].startswith("none") for entry in record.values())
    capsys.readouterr()
    assert gpu.run("tune", tmp_path, toy=True)
    assert capsys.readouterr().out.count("done before") == len(record)


def test_a_copy_without_its_history_asks_for_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_record, "checkout", lambda: gpu_record.UNKNOWN)
    with pytest.raises(SystemExit, match="--commit"):
        gpu.run("tune", tmp_path, toy=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which it sets
    with pytest.raises(SystemExit, match="no GPU"):
        gpu.run("time", tmp_path, toy=False)
    assert list(tmp_path.iterdir()) == []
    assert measure.ceilings() == {}


def test_toy_results_do_not_go_among_the_measured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    monkeypatch.setattr(gpu, "run", lambda stage, out, *rest: folders.append(gpu.folder(out, rest[0])) or True)
    for arguments in (["tune", "--toy"], ["tune"]):
        monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
        with pytest.raises(SystemExit):
            gpu.main()
    assert folders == [gpu.TOY_RESULTS, gpu.RESULTS]
