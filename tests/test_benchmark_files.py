"""The files of results: what is damaged is told, what is interrupted is kept, several processes may write at once."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import conditions, module, report, training_step
from benchmarks.conditions import read_rows, upsert
from benchmarks.discovery import DiscoveryStep

KEY = ("which",)
DAMAGED = {
    "bytes": (b"which,ms\n\x97\xff,1\n", "damaged ('utf-8' codec"),
    "quotes": (b'which,ms\n"a,1\n', "damaged (unexpected end of data)"),
    "short": (b"which,ms\na\n", "damaged (a row of another length)"),
    "long": (b"which,ms\na,1,2\n", "damaged (a row of another length)"),
    "other": (b"what,ms\na,1\n", "has no column which"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_told_and_stays(kind: str, tmp_path: Path) -> None:
    content, message = DAMAGED[kind]
    path = tmp_path / "module.csv"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        upsert(path, [{"which": "b", "ms": 2}], KEY)
    assert str(end.value).startswith(f"{path}: {message}")
    assert str(end.value).endswith("; move it away, and the next run writes a new one")
    assert path.read_bytes() == content


def test_what_should_be_a_number_and_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "module.csv"
    path.write_text("which,ms\na,\nb,slow\n")
    assert len(read_rows(path, KEY)) == 2
    with pytest.raises(SystemExit, match=r"damaged .could not convert string to float: 'slow'.; move it away"):
        read_rows(path, KEY, numbers=("ms",))


def test_rows_replace_those_of_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    upsert(path, [{"a": 1, "b": "x", "ms": 2.0}, {"a": 2, "b": "x", "ms": 3.123456}], ("a", "b"))
    upsert(path, [{"a": 2, "b": "x", "ms": 4.0, "new": "n"}], ("a", "b"))
    assert read_rows(path) == [
        {"a": "1", "b": "x", "ms": "2", "new": ""},
        {"a": "2", "b": "x", "ms": "4", "new": "n"},
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "some.csv"]


def _write(path: Path, writer: int) -> None:
    for number in range(20):
        upsert(path, [{"which": f"{writer}-{number}", "ms": number}], KEY)


def test_processes_that_write_at_once_lose_no_row(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(tmp_path / "some.csv", writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(read_rows(tmp_path / "some.csv", KEY)) == 60


@pytest.mark.parametrize("main", [benchmarks.main, report.main, module.main], ids=["all", "report", "module"])
def test_results_need_a_folder(
    main: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    part = ["memory"] if main is module.main else []
    monkeypatch.setattr(sys, "argv", ["benchmark", *part, "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit):
        main()  # type: ignore[operator]
    assert "--out: got " in capsys.readouterr().err


@pytest.mark.usefixtures("no_interpreter")
def test_interrupted_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        conditions.command(main)
    assert end.value.code == 130
    assert capsys.readouterr().err.startswith("interrupted; what was measured is in the files of results")


def test_the_interpreter_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="TRITON_INTERPRET=1: Triton's kernels would be interpreted"):
        conditions.command(lambda: None)


def test_benchmarks_run_in_the_root_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"README\.md: not here; benchmarks run in the root of the repository"):
        conditions.command(lambda: None)


@pytest.mark.usefixtures("no_interpreter")
def test_a_package_that_is_missing_is_told() -> None:
    def main() -> None:
        raise ModuleNotFoundError("No module named 'triton'")

    with pytest.raises(SystemExit, match="No module named 'triton'; `pip install "):
        conditions.command(main)


STOPPED = """
import sys
from benchmarks.conditions import command, run_command

command(lambda: run_command([sys.executable, "-c", sys.argv[1]]))
"""
CHILD = """
import signal, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
print("there", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)
    print("in peace", flush=True)
"""


def test_what_runs_is_stopped_too_and_waited_for() -> None:
    arguments = [sys.executable, "-c", STOPPED, CHILD]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, env=environment, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.terminate()
        told, complaint = process.communicate(timeout=30)
    assert (process.returncode, told) == (130, "in peace\n")
    assert complaint.startswith("interrupted; ")


def test_quick_results_are_not_those_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_step, "measure", lambda *_: iter([[{"part": "step"}]]))
    monkeypatch.setattr(
        training_step, "write_results", lambda name, found, more, text, folder: written.append(folder) or []
    )
    for arguments in (["--quick"], []):
        monkeypatch.setattr(sys, "argv", ["discovery", *arguments])
        training_step.main(DiscoveryStep, {}, {}, "")
    assert written == [conditions.QUICK_RESULTS, conditions.RESULTS]


def test_what_is_found_is_kept_before_the_rest_is(tmp_path: Path) -> None:
    def found() -> Iterator[list[dict[str, Any]]]:
        yield [{"which": "a"}]
        assert read_rows(tmp_path / "some-unfinished.csv") == [{"which": "a", "day": "x"}]
        yield [{"which": "a"}, {"which": "b"}]
        raise KeyboardInterrupt

    conditions.write_rows(tmp_path / "some.csv", [{"which": "of an earlier run"}])
    with pytest.raises(KeyboardInterrupt):
        conditions.write_results("some", found(), {"day": "x"}, lambda rows, path: "", tmp_path)
    assert [row["which"] for row in read_rows(tmp_path / "some-unfinished.csv")] == ["a", "b"]
    assert [row["which"] for row in read_rows(tmp_path / "some.csv")] == ["of an earlier run"]
    rows = conditions.write_results("some", [[{"which": "c"}]], {"day": "x"}, lambda rows, path: "", tmp_path)
    assert rows == read_rows(tmp_path / "some.csv") == [{"which": "c", "day": "x"}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.csv", "some.md"]


def test_tables_go_where_a_page_has_a_place_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def table(rows: Sequence[Mapping[str, Any]], path: Path) -> str:
        return f"{path}: {[row['ms'] for row in rows]}\n"

    monkeypatch.chdir(tmp_path)
    before = "# Title\n\n<!-- some.md -->\nold\n<!-- end of some.md -->\n\n<!-- other.md -->\n"
    page, other = conditions.PAGES
    page.write_text(before)
    other.parent.mkdir()
    other.write_text("<!-- other.md --><!-- end of other.md --> and more")
    for name, folder in (("some", tmp_path), ("unseen", conditions.RESULTS), ("other", conditions.RESULTS)):
        conditions.write_results(name, [[{"ms": 1}]], {}, table, folder)
        assert page.read_text() == before
        assert (folder / f"{name}.md").exists()
    shown = conditions.RESULTS.resolve()  # by any name
    conditions.write_results("some", [[{"ms": 1}], [{"ms": 1}, {"ms": 2}]], {}, table, shown)
    text = f"{shown}/some.csv: [1, 2]"
    assert page.read_text() == before.replace("old", text)
    shown_there = f"{conditions.RESULTS}/other.csv: [1]"
    assert other.read_text() == f"<!-- other.md -->\n{shown_there}\n<!-- end of other.md --> and more"
    assert (conditions.RESULTS / "some.md").read_text() == f"{text}\n"


def _put(folder: Path, name: str, all_are_there: Barrier) -> None:
    os.chdir(folder)
    all_are_there.wait()
    for number in range(100):
        conditions.put_into_pages(name, f"{number}\n")


def test_processes_that_write_into_a_page_at_once_lose_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    conditions.RESULTS.mkdir(parents=True)
    conditions.PAGES[0].write_text("".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in "abc"))
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    writers = [context.Process(target=_put, args=(tmp_path, name, barrier)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert conditions.PAGES[0].read_text() == "".join(f"<!-- {n} -->\n99\n<!-- end of {n} -->\n" for n in "abc")


def test_a_commit_with_changes_is_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    monkeypatch.chdir(tmp_path)
    assert conditions.commit() == "unknown"
    git("init")
    (tmp_path / "file").write_text("before")
    (tmp_path / "benchmarks").mkdir()
    for page in conditions.PAGES:
        page.write_text("before")
    git("add", "file", *map(str, conditions.PAGES))
    git("commit", "-m", "first")
    clean = conditions.commit()
    assert not clean.endswith("-dirty")
    for page in conditions.PAGES:
        page.write_text("of a table that was written")
    assert conditions.commit() == clean
    (tmp_path / "file").write_text("after")
    assert conditions.commit() == f"{clean}-dirty"
    monkeypatch.setenv("PATH", "")
    assert conditions.commit() == "unknown"


def test_nothing_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["report", "--out", str(tmp_path)])
    report.main()
    assert "module.csv: nothing to report; `python -m benchmarks` measures" in capsys.readouterr().out
