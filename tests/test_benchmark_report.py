"""The tables and plots of the module's rows, at toy size and of those that are committed."""

import csv
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from benchmarks import conditions, contenders, gpu_table, module, plots, report
from benchmarks.conditions import read_rows, upsert
from benchmarks.gpu_record import load
from benchmarks.measure import Rates
from benchmarks.module import MEMORY, TIME

RATES = Rates(copy_bytes_per_s=1e9, flop_per_s=1e10)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_interpreter: None) -> Path:
    """A folder with the rows of every part at toy size."""
    monkeypatch.setattr(module, "QUICK_SHAPES", ((2, 20, 3),))
    monkeypatch.setattr(report, "QUICK_SHAPES", ((2, 20, 3),))
    monkeypatch.setattr(module, "QUICK_SCALED", {"N": (10, 40), "K": (2, 4), "T": (1, 2)})
    monkeypatch.setattr(module, "rates", lambda dtype, rounds: RATES)
    monkeypatch.setattr(module, "peak_mib", lambda shape, which, name, threads: (shape.N / 10, 99.0))
    for rows in module.rows_of(module.PARTS, True, 2, 2, 1):
        upsert(tmp_path / module.CSV, [module.conditions(1) | row for row in rows], module.KEY)
    return tmp_path


def test_tables_and_plots_are_made_of_the_rows_alone(measured: Path) -> None:
    written = report.report(measured)
    assert [path.name for path in written] == ["module-cpu.md", "module-cpu-N-K.png", "module-cpu-B-D-T.png"]
    text = written[0].read_text()
    assert "| 2 x 20 x 3 | float32 | forward+backward " in text
    times = text.split("Milliseconds")[1].split("Peak memory")[0]
    line = next(line for line in times.splitlines() if "| forward |" in line)
    cells = dict(zip(times.splitlines()[2].split("|"), line.split("|"), strict=True))
    assert "x**" not in cells[" ours: torch "]
    assert "x** (" in cells[" reference "]
    assert "2 (99)" in text
    assert "commit " in text
    assert f": `{conditions.ran()}`, {measured}/module.csv." in text
    rows = read_rows(measured / module.CSV)
    assert [row["N"] for row in plots.series(rows, "N") if row["contender"] == "torch" and row["measured"] == TIME] == [
        "10",
        "20",
        "40",
    ]
    assert {row["measured"] for row in plots.series(rows, "K")} == {TIME, MEMORY}


def test_tables_need_no_matplotlib(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.plots", None)
    monkeypatch.delattr("benchmarks.plots")
    assert [path.name for path in report.report(measured)] == ["module-cpu.md"]
    assert "no plots: " in capsys.readouterr().err


def test_a_contender_of_one_size_is_no_line(measured: Path) -> None:
    rows = [row for row in plots.series(read_rows(measured / module.CSV), "N") if row["measured"] == TIME]
    axes = Figure().subplots()
    lone = next(row for row in rows if row["contender"] == "torch")
    plots.draw(axes, [*(row for row in rows if row["contender"] != "torch"), lone], "N", TIME)
    assert [line.get_label() for line in axes.get_lines()] == ["reference", "slot-attention", "limit of the machine"]


@pytest.mark.parametrize(
    ("times", "shown"), [((5.5, 60), ["10", "20", "50"]), ((0.4, 1800), ["0.5", "1", "100", "1,000"])]
)
def test_numbers_at_the_axes_are_plain(times: tuple[float, float], shown: list[str]) -> None:
    sizes = {"N": "20", "K": "3", "B": "2", "D": "64", "T": "3"}
    kind = {"contender": "torch", "measured": MEMORY, "floor_ms": ""}
    axes = Figure().subplots()
    rows = [{**sizes, **kind, "N": n, "peak_mib": str(mib)} for n, mib in zip(("20", "4096"), times, strict=True)]
    plots.draw(axes, rows, "N", MEMORY)
    low, high = axes.get_ylim()
    texts = {label.get_position()[1]: label.get_text() for label in axes.get_yticklabels()}
    seen = [text for y, text in sorted(texts.items()) if low <= y <= high]
    assert set(shown) <= set(seen)
    assert all(text.replace(",", "").replace(".", "").isdigit() for text in seen)
    assert not any(label.get_text() for label in axes.get_yticklabels(minor=True))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["20", "4,096"]


def test_rows_of_other_shapes_alone_have_their_conditions_told(measured: Path) -> None:
    rows = [row for row in read_rows(measured / module.CSV) if row["N"] != "20"]
    text = report.tables(rows, measured / module.CSV)
    assert text.startswith(f"{rows[0]['device']}, 1 threads, torch {torch.__version__}, ")


def test_the_title_names_every_commit() -> None:
    row = {"dtype": "float32", "device": "some CPU", "threads": "2", "torch": "2.13", "commit": "abc", "date": "today"}
    assert plots._title([row, row | {"commit": "def"}, row]).endswith(", commit abc, today, commit def, today")


def test_what_is_drawn_is_what_was_measured(measured: Path) -> None:
    every = plots.series(read_rows(measured / module.CSV), "N")
    for kind, value in ((TIME, "ms_median"), (MEMORY, "peak_mib")):
        rows = [row for row in every if row["measured"] == kind and row["contender"] == "reference"]
        axes = Figure().subplots()
        plots.draw(axes, rows, "N", kind)
        drawn = axes.get_lines()[0]
        assert list(drawn.get_xdata()) == [int(row["N"]) for row in rows] == [10, 20, 40]
        assert list(drawn.get_ydata()) == [float(row[value]) for row in rows]
        if kind == TIME:
            (band,) = axes.collections
            edges = {tuple(point) for path in band.get_paths() for point in path.vertices}
            assert {(float(r["N"]), float(r[edge])) for r in rows for edge in ("ms_p20", "ms_p80")} <= edges


def test_the_machine_of_the_last_rows_is_shown() -> None:
    rows = [{"device": "a", "threads": threads, "date": "2026-01-01"} for threads in ("2", "1", "1")]
    assert report.newest(rows) == rows[1:]


def test_the_committed_rows_can_be_reported(tmp_path: Path) -> None:
    (tmp_path / module.CSV).write_bytes(Path("benchmarks/results", module.CSV).read_bytes())
    written = report.report(tmp_path)
    text = written[0].read_text().replace(str(tmp_path), "benchmarks/results")
    assert text == Path("benchmarks/results", written[0].name).read_text()
    assert len(written) == 3


def test_the_committed_records_of_a_gpu_can_be_reported(tmp_path: Path) -> None:
    results = conditions.RESULTS
    for stage in ("time", "steps"):
        (tmp_path / f"gpu-{stage}.json").write_bytes((results / f"gpu-{stage}.json").read_bytes())
    written = report.gpu_report(tmp_path)
    assert [path.name for path in written] == ["gpu-time.md", "gpu-steps.md"]
    for path in written:
        assert path.read_text() == (results / path.name).read_text()


def test_the_summary_of_the_gpus_times_goes_into_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = (conditions.RESULTS / "gpu-time.json").read_bytes()
    monkeypatch.chdir(tmp_path)
    conditions.RESULTS.mkdir(parents=True)
    page, path = conditions.PAGES[0], conditions.RESULTS / "gpu-time.json"
    path.write_bytes(record)
    page.write_text("<!-- gpu-time.md --><!-- end of gpu-time.md -->")
    report.gpu_report(conditions.RESULTS)
    assert page.read_text() == f"<!-- gpu-time.md -->\n{gpu_table.summary(load(path), path)}<!-- end of gpu-time.md -->"


def test_the_pages_show_what_is_in_the_results() -> None:
    shown = {}
    for page in conditions.PAGES:
        for part in page.read_text().split("<!-- end of ")[:-1]:
            name, _, table = part.rpartition("<!-- ")[2].partition(" -->\n")
            assert name not in shown
            shown[name] = table
    record = conditions.RESULTS / "gpu-time.json"
    assert shown.pop("gpu-time.md") == gpu_table.summary(load(record), record)
    assert {name: (conditions.RESULTS / name).read_text() for name in shown} == shown
    assert set(shown) == {path.name for path in conditions.RESULTS.glob("*-cpu.md")}


def test_committed_rows_have_their_key_once() -> None:
    with Path("benchmarks/results", module.CSV).open(newline="") as file:
        keys = [tuple(row[name] for name in module.KEY) for row in csv.DictReader(file)]
    assert len(keys) == len(set(keys))
    assert {size for key in keys for size in key} >= set(chain(("time", "memory"), contenders.PASSES))
