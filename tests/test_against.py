"""The comparison with a git revision: a module that was slowed is found, the same code is not called slower."""

import io
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import slotattn_fast
from benchmarks import against, against_worker
from benchmarks.against import Interval, interval, verdict
from slotattn_fast import SlotAttention

CASE = (1, 16, 2, "forward")
PARAMETERS = sum(not name.startswith("slots_") for name, _ in SlotAttention(2, 64).named_parameters())
SLOWED = """
import time

_forward = SlotAttention.forward


def _slowed(*arguments: Any, **options: Any) -> Any:
    time.sleep(0.01)
    return _forward(*arguments, **options)


SlotAttention.forward = _slowed
"""


def in_checkout() -> bool:
    try:
        return not subprocess.run(["git", "cat-file", "-e", "HEAD:kernels"], capture_output=True).returncode
    except OSError:
        return False


needs_git = pytest.mark.skipif(not in_checkout(), reason="not a git checkout")


def test_an_interval_holds_the_median_and_leaves_out_what_is_rare() -> None:
    values = [1.0] * 3 + [2.0] * 94 + [50.0] * 3
    assert interval(values) == Interval(2, 2, 2)
    assert interval([3.0, 1.0, 2.0]) == Interval(1, 2, 3)
    low, middle, high = interval(list(range(100)))
    assert (low, middle, high) == (38, 49.5, 62)  # 12 = 2.576 * sqrt(100) / 2 places off the middle


@pytest.mark.parametrize(
    ("pairs", "outcome"),
    [
        ([(1.1, 1.2, 1.3), (1.04, 1.2, 1.3)], "SLOWER"),
        # One pair alone is not enough.
        ([(1.1, 1.2, 1.3), (1.0, 1.2, 1.4)], "not clear: up to 40% slower would be within the noise"),
        ([(0.9, 1.0, 1.02), (0.9, 1.0, 1.03)], "not slower"),
        ([(0.5, 0.6, 0.7), (0.5, 0.6, 0.9)], "faster"),
        ([(0.5, 0.6, 0.7), (0.5, 0.6, 1.0)], "not slower"),
    ],
)
def test_all_pairs_have_to_agree(pairs: list[tuple[float, float, float]], outcome: str) -> None:
    assert verdict([Interval(*pair) for pair in pairs]) == outcome


@needs_git
def test_a_slowed_module_is_slower_and_the_same_is_not() -> None:
    """The same is slowed too: beside 10 ms, the few percent are little by which two processes of the same differ."""
    with against.packages("HEAD") as (then, now):
        with (now / "slotattn_fast" / "modules.py").open("a") as file:
            file.write(SLOWED)
        assert verdict([interval(against.ratios(then, now, CASE, 9, 1))]) == "SLOWER"
        assert verdict([interval(against.ratios(now, now, CASE, 9, 1))]) != "SLOWER"


@needs_git
def test_the_working_tree_is_what_is_now(tmp_path: Path) -> None:
    with against.packages("HEAD") as (then, now):
        for package in (then, now):
            assert (package / "slotattn_fast" / "kernels" / "attend.py").is_file()
            assert (package / "slotattn_fast" / "reference" / "slot_attention.py").is_file()
        assert (now / "slotattn_fast" / "functional.py").read_text() == Path("slotattn_fast/functional.py").read_text()


def test_rounds_count_after_the_warm_up_and_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Side:
        sums = (1.0,)

        def __init__(self, package: Path, case: against.Case, threads: int) -> None:
            self.name = package.name

        def milliseconds(self) -> float:
            order.append(self.name)
            slow = 100 if self.name == "now" and len(order) <= 2 * against.WARM_UP else 1
            return slow * {"then": 2.0, "now": 3.0}[self.name]

        def close(self) -> None:
            order.append(f"{self.name} closed")

    monkeypatch.setattr(against, "Side", Side)
    assert against.ratios(Path("then"), Path("now"), CASE, 3, 1) == [1.5] * 3
    assert order == [*(["now", "then", "then", "now"] * 3)[: 2 * (3 + against.WARM_UP)], "now closed", "then closed"]


def test_one_slower_case_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def packages(revision: str) -> Iterator[tuple[Path, Path]]:
        yield Path("then"), Path("now")

    monkeypatch.setattr(against, "packages", packages)
    for which in ("none", *against.PASSES):
        monkeypatch.setattr(against, "ratios", lambda *given, which=which: [2.0 if given[2][3] == which else 1.0] * 9)
        monkeypatch.setattr("sys.argv", ["against", "HEAD", "--pairs", "1", "--threads", "1"])
        with pytest.raises(SystemExit) as end:
            against.main()
        assert end.value.code == (which != "none")


@needs_git
def test_both_sides_take_gradients() -> None:
    with against.packages("HEAD") as (then, now):
        for package in (then, now):
            side = against.Side(package, (1, 16, 2, against.PASSES[1]), 1)
            assert len(side.sums) == 2 + PARAMETERS
            side.close()


@pytest.mark.parametrize(("which", "results"), list(zip(against.PASSES, (1, 2 + PARAMETERS), strict=True)))
def test_a_side_answers_each_line_with_a_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], which: str, results: int
) -> None:
    monkeypatch.setattr("sys.argv", ["against_worker", json.dumps([1, 16, 2, which, torch.get_num_threads()])])
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n"))
    against_worker.main()
    (where, sums), *times = map(json.loads, capsys.readouterr().out.splitlines())
    assert where == slotattn_fast.__file__
    assert len(sums) == results
    assert len(times) == 2
    assert min(times) > 0


def test_without_git_nothing_is_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.argv", ["against", "HEAD"])
    with pytest.raises(SystemExit) as end:
        against.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("--against: git cannot be run (No such file")


@needs_git
def test_a_revision_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for revision in ("nowhere", "--output=somewhere"):
        with pytest.raises(SystemExit) as end, against.packages(revision):
            pass
        assert end.value.code == 2  # 1 is slower
        told = capsys.readouterr().err
        assert told.startswith(f"--against: got '{revision}', expected a git revision that has slotattn_fast, kernels")
