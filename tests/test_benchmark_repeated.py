"""Two runs of the benchmarks: what is within the spread of both agrees, and what is not is named."""

import sys
from pathlib import Path

import pytest

from benchmarks import repeated
from benchmarks.conditions import write_rows
from benchmarks.module import SIZES

CONDITIONS = {"device": "some CPU", "threads": 2, "commit": "abc", "date": "2026-01-01"}
HEAD = {**CONDITIONS, "dtype": "float32", **dict.fromkeys(SIZES, 4), "pass": "forward"}


def timing(contender: str, p20: float, median: float, p80: float, times_ours: float) -> dict[str, object]:
    spread = {"ms_p20": p20, "ms_median": median, "ms_p80": p80}
    rates = {"copy_gb_per_s": 30.2, "product_gflop_per_s": 180}
    return {**HEAD, "contender": contender, **spread, "times_ours": times_ours, **rates}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    missing = dict.fromkeys(timing("triton", 1, 1, 1, 1), "") | HEAD | {"contender": "triton"}
    for folder, rows in (
        (first, [timing("torch", 1, 2, 3, 1), timing("reference", 4, 5, 6, 2.5), timing("compiled", 4, 4, 4, 2)]),
        (second, [timing("torch", 3, 4, 5, 1), timing("reference", 6.5, 7.5, 8, 3), timing("only here", 1, 1, 1, 1)]),
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
    assert "| module.csv | 2 | 1 | 1.55 to 1.95 | 1.20 to 1.20 |" in text  # of 2 and 1.5; of 3 by 2.5
    apart = text.split("do not agree")[1]
    assert "reference | 5 (4 to 6) | 7.5 (6.5 to 8) |" in apart
    assert "torch" not in apart


def test_steps_are_compared_too(tmp_path: Path) -> None:
    for run, ms in (("first", 10.0), ("second", 11.0)):
        row = {**CONDITIONS, "preset": "clevr6", "batch": 2, "contender": "ours", "part": "step", "pass": "step"}
        (tmp_path / run).mkdir()
        spread = {"ms_p20": ms - 1, "ms_median": ms, "ms_p80": ms, "faster": 2.0 + ms}
        write_rows(tmp_path / run / "discovery-cpu.csv", [row | spread])
    text = repeated.table(tmp_path / "first", tmp_path / "second")
    assert "| discovery-cpu.csv | 1 | 1 | 1.10 to 1.10 | 1.08 to 1.08 |" in text
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
    row = {**timing("torch", 1, 2, 3, 1), **dict.fromkeys(key, "x"), ratio: 2}
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        write_rows(tmp_path / run / file, [row])
    assert f"| {file} | 1 | 1 | 1.00 to 1.00 | 1.00 to 1.00 |" in repeated.table(
        tmp_path / "first", tmp_path / "second"
    )


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
