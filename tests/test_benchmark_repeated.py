"""Two runs of the benchmarks: what is within the spread of both agrees, and what is not is named."""

import sys
from pathlib import Path

import pytest

from benchmarks import repeated
from benchmarks.conditions import write_rows
from benchmarks.module import SIZES
from benchmarks.spread import names

CONDITIONS = {"device": "some CPU", "threads": 2, "commit": "abc", "date": "2026-01-01"}
HEAD = {**CONDITIONS, "dtype": "float32", **dict.fromkeys(SIZES, 4), "pass": "forward"}


def spread(what: str, *values: float) -> dict[str, float]:
    return dict(zip(names(what), values, strict=True))


def timing(contender: str, p20: float, median: float, p80: float, times_ours: float) -> dict[str, object]:
    """Its ratio 0.1 less to 0.1 more, that of ours to itself 1."""
    by = 0.1 * (times_ours != 1)
    times = spread("times_ours", times_ours - by, times_ours, times_ours + by)
    rates = {"copy_gb_per_s": 30.2, "product_gflop_per_s": 180}
    return {**HEAD, "contender": contender, **spread("ms", p20, median, p80), **times, **rates}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    missing = dict.fromkeys(timing("triton", 1, 1, 1, 1), "") | HEAD | {"contender": "triton"}
    for folder, rows in (
        (first, [timing("torch", 1, 2, 3, 1), timing("reference", 4, 5, 6, 2.5), timing("compiled", 4, 5, 6, 2)]),
        (
            second,
            [timing("torch", 3, 4, 5, 1), timing("reference", 6.5, 7.5, 8, 2.6), timing("compiled", 4, 5, 6, 1.5)],
        ),
    ):
        folder.mkdir()
        write_rows(folder / "module.csv", [*rows, missing])
    return first, second


def test_what_is_in_both_is_compared(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["repeated", *map(str, runs), "--out", str(tmp_path)])
    repeated.main()
    text = (tmp_path / "repeated.md").read_text()
    assert text in capsys.readouterr().out
    assert text.startswith("some CPU, 2 threads, commit abc, 2026-01-01: two runs of ")
    assert "Copy 30 and 30 GB/s, matrix product 180 and 180 GFLOP/s. " in text
    # Of 2, 1.5 and 1; of 2.6 by 2.5 and 1.5 by 2.
    assert "| module.csv | 3 | 2 | 1.10 to 1.90 | 2 | 1 | 0.78 to 1.01 |" in text
    apart = text.split("do not agree")[1]
    assert "reference | 5 ms (4 to 6) | 7.5 ms (6.5 to 8) |" in apart
    assert "compiled | 2.00 times (1.90 to 2.10) | 1.50 times (1.40 to 1.60) |" in apart
    assert apart.count(" to ") == 4


def test_steps_are_compared_too(tmp_path: Path) -> None:
    for run, ms in (("first", 10.0), ("second", 11.0)):
        row = {**CONDITIONS, "preset": "clevr6", "batch": 2, "contender": "ours", "part": "step", "pass": "step"}
        (tmp_path / run).mkdir()
        row |= spread("ms", ms - 1, ms, ms) | spread("faster", 1.0 + ms, 2.0 + ms, 2.0 + ms)
        part = row | {"part": "encoder"} | dict.fromkeys(names("faster"), "")
        parts = [part | {"pass": which} for which in ("forward", "backward")]
        write_rows(tmp_path / run / "discovery-cpu.csv", [row, *parts])
    text = repeated.table(tmp_path / "first", tmp_path / "second")
    assert "| discovery-cpu.csv | 3 | 3 | 1.10 to 1.10 | 1 | 1 | 1.08 to 1.08 |" in text
    assert "do not agree" not in text


def test_both_commits_and_the_order_of_the_rates_are_told(tmp_path: Path) -> None:
    for run, commit, copy in (("first", "abc", 30), ("second", "def", 40)):
        (tmp_path / run).mkdir()
        row = timing("torch", 1, 2, 3, 1) | {"commit": commit, "copy_gb_per_s": copy}
        write_rows(tmp_path / run / "module.csv", [row])
    text = repeated.table(tmp_path / "first", tmp_path / "second")
    assert text.startswith("some CPU, 2 threads, commit abc, 2026-01-01 and commit def, 2026-01-01: two runs of ")
    assert "Copy 30 and 40 GB/s, matrix product 180 and 180 GFLOP/s. " in text


@pytest.mark.parametrize("file", list(repeated.FILES))
def test_every_file_is_compared(file: str, tmp_path: Path) -> None:
    key, ratio = repeated.FILES[file]
    row = {**timing("torch", 1, 2, 3, 1), **dict.fromkeys(key, "x"), **spread(ratio, 1, 2, 3)}
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        write_rows(tmp_path / run / file, [row])
    text = repeated.table(tmp_path / "first", tmp_path / "second")
    assert f"| {file} | 1 | 1 | 1.00 to 1.00 | 1 | 1 | 1.00 to 1.00 |" in text


def test_a_file_of_an_older_version_is_told(runs: tuple[Path, Path]) -> None:
    path = runs[1] / "module.csv"
    path.write_text(path.read_text().replace("ms_p80", "ms_p90"))
    with pytest.raises(SystemExit, match=r"module\.csv: has no column ms_p80; move it away"):
        repeated.table(*runs)


def test_folders_without_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["repeated", str(tmp_path), str(tmp_path / ".")])
    with pytest.raises(SystemExit):
        repeated.main()
    assert f"got {tmp_path} twice, expected the folders of two runs" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["repeated", str(tmp_path), str(tmp_path / "other")])
    with pytest.raises(SystemExit):
        repeated.main()
    assert "no timing is in both, expected two folders of `python -m benchmarks`" in capsys.readouterr().err
