"""Measuring: the units of times and rates, processes of their own, memory that was given back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import measure, reasons, spread
from benchmarks.measure import Rates, Sample, give_memory_back, in_fresh_process, resident_growth, samples


def test_a_sample_is_in_milliseconds_of_the_clock_and_of_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"perf_counter": iter((1.0, 1.5)), "process_time": iter((2.0, 2.75))}
    for name, ticks in clocks.items():
        monkeypatch.setattr(measure.time, name, lambda ticks=ticks: next(ticks))
    assert measure._timed(lambda: None) == Sample(500, 750)


def test_each_round_has_every_call_in_an_order_of_its_own() -> None:
    made: list[str] = []
    calls = {name: (lambda name=name: made.append(name)) for name in "abc"}
    samples(calls, rounds=60)
    rounds = ["".join(made[at : at + 3]) for at in range(0, len(made), 3)]
    assert len(rounds) == 60 + measure.WARM_UP
    assert set(rounds) == {"abc", "acb", "bac", "bca", "cab", "cba"}  # one is missing once in 16 000 runs of the test


def test_rates_count_what_is_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "wall_times", lambda calls, rounds: {name: [1000.0] for name in calls})
    assert measure.rates(torch.float32, 3) == Rates(2 * 4 * 2**26, 2 * 2048**3)


def test_percentiles_lie_within_what_was_measured() -> None:
    assert spread.percentiles([1.0, 2.0, 100.0]) == pytest.approx((1.4, 2, 60.8))


def test_a_spread_is_columns_of_a_row_and_a_cell() -> None:
    row = spread.columns("ms", [1.0, 2.0, 100.0])
    assert row == {"ms_p20": 1.4, "ms_median": 2, "ms_p80": 60.8}
    assert spread.cell({name: str(value) for name, value in row.items()}, "ms", ".1f", "ms") == "2.0 ms (1.4 to 60.8)"


def test_ratios_are_those_of_the_rounds() -> None:
    row = spread.ratios("times", [4.0, 9.0, 30.0], [4.0, 3.0, 6.0])
    assert row == {"times_p20": 1.8, "times_median": 3, "times_p80": 4.2}
    assert spread.ratio_cell(row, "times") == "**3.0x** (1.8 to 4.2)"
    assert spread.ratio_cell(dict.fromkeys(row, ""), "times") == ""


def _kill(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_process_that_is_ended_from_outside_is_told() -> None:
    with pytest.raises(RuntimeError, match="its process ended with -9"):
        in_fresh_process(_kill, signal.SIGKILL, preloaded=())


def test_what_a_process_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        in_fresh_process(divmod, 1, 0, preloaded=())


ENDLESS = """
import os, sys, time
from benchmarks.measure import in_fresh_process

def fill(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(2)

if __name__ == "__main__":
    in_fresh_process(fill, sys.argv[1], preloaded=())
"""


def test_a_process_ends_where_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    told = tmp_path / "process"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "endless.py"), str(told)], env=environment)
    until = time.monotonic() + 60
    while not (told.exists() and told.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while Path("/proc", told.read_text()).exists():
        assert time.monotonic() < until, "it is there still"
        time.sleep(0.05)


def test_growth_is_seen_again_after_memory_was_given_back() -> None:
    """In two of three times: what else this process frees or takes may come in between."""
    give_memory_back()
    assert resident_growth(lambda: torch.ones(2**24))[0] > 60  # a peak before
    found = [resident_growth(lambda: torch.ones(2**22)) for _ in range(3)]  # 16 MiB
    assert 15 < sorted(growth for growth, _ in found)[1] < 20
    assert all(size > growth for growth, size in found)


def test_samples_have_wall_and_cpu_time() -> None:
    (found,) = samples({"sum": lambda: torch.ones(2**20).sum()}, 3).values()
    assert len(found) == 3
    assert all(sample.ms > 0 and sample.cpu_ms > 0 for sample in found)


def test_a_call_that_fails_is_left_out_where_its_failure_is_kept() -> None:
    made: list[int] = []

    def fails() -> None:
        made.append(1)
        if len(made) == 3:
            raise RuntimeError("no memory")

    failures: dict[str, str] = {}
    found = samples({"fails": fails, "works": lambda: None}, 4, 1, failures)
    assert failures == {"fails": "RuntimeError: no memory"}
    assert {name: len(each) for name, each in found.items()} == {"works": 4}
    assert len(made) == 3
    made.clear()
    with pytest.raises(RuntimeError, match="no memory"):
        samples({"fails": fails}, 4, 1)


def test_nothing_agrees_with_what_is_infinite() -> None:
    assert reasons.too_wrong(1.0, 1.0, "x") == ""
    assert reasons.too_wrong(1.1, 1.0, "x").startswith("off by 1.1e+00")
    for error in (1.0, float("inf"), float("nan")):
        assert reasons.too_wrong(error, float("inf"), "x").startswith("off by")
