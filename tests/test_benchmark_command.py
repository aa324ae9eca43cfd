"""`python -m benchmarks`: its parts, what they say of each other, and bad arguments."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as command
from benchmarks.conditions import ran, read_rows


def test_a_part_that_fails_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    called: list[list[str]] = []

    def call(arguments: list[str]) -> int:
        called.append(arguments[2:])
        return int("benchmarks.module" in arguments)

    monkeypatch.setattr(command, "run_command", call)
    assert command.run(["forward", "data", "scaling"], True, tmp_path / "new") == 1
    assert [arguments[:3] for arguments in called] == [
        ["benchmarks.module", "forward", "scaling"],
        ["benchmarks.data", "--quick", "--out"],
    ]
    durations = read_rows(tmp_path / "new" / "durations.csv")
    assert [(row["parts"], row["outcome"]) for row in durations] == [
        ("forward, scaling", "failed with 1"),
        ("data", "done"),
    ]
    assert all(arguments[-2:] == ["--out", str(tmp_path / "new")] for arguments in called)
    assert "failed: forward, scaling" in capfd.readouterr().out


def test_damaged_durations_are_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(command, "run_command", lambda arguments: called.append(arguments) or 0)
    (tmp_path / "durations.csv").write_bytes(b"device,command\n\x97\xff")
    with pytest.raises(SystemExit, match=r"durations\.csv: damaged"):
        command.run(["data"], True, tmp_path)
    assert called == []


def test_a_busy_machine_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run_command", lambda arguments: 0)
    for load in (0.5, 1.5):
        monkeypatch.setattr(command.os, "getloadavg", lambda load=load: (load, 9.0, 9.0))
        command.run(["forward"], True, tmp_path)
        assert ("the load of the last minute is 1.5: " in capsys.readouterr().out) is (load > 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["forwards"], "PART: got 'forwards', expected some of forward, backward, memory"),
        (["--against", "HEAD", "data"], "--against: got it with data; it compares the module alone"),
    ],
)
def test_bad_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit):
        command.main()
    assert message in capsys.readouterr().err


def test_every_part_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "--help"])
    with pytest.raises(SystemExit):
        command.main()
    text = capsys.readouterr().out
    for name, part in command.PARTS.items():
        assert f"    {name:19}{part.what}\n" in text


@pytest.mark.parametrize("module", ["benchmarks", "benchmarks.module"])
def test_a_command_is_told_as_one_types_it(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    name = f"{module}.__main__" if module == "benchmarks" else module
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name=name))
    monkeypatch.setattr(sys, "argv", ["path", "--out", "a b"])
    assert ran() == f"python -m {module} --out 'a b'"
