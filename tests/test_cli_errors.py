"""Wrong usage is told in one line that names what came and the command whose help to read."""

import os
import subprocess
import sys

import pytest

from slotattn_fast import cli

MESSAGES = {
    "paper --scale foo": "invalid choice 'foo' for argument '--scale'. Expected one of ('",
    "train discovery --presset quick": "Unrecognized options: --presset, quick; Perhaps you meant: --preset NAME; see "
    "`slotattn train discovery --help`",
    "foo": "Unrecognized options: foo; Available subcommands: train, data, eval, show, paper, info; see "
    "`slotattn --help`",
    "train": "Expected one of {discovery, property, resume}; see `slotattn train --help`",
    "train resume": "Missing from slotattn train resume: RUN; see `slotattn train resume --help`",
    "data prepare": "Missing from slotattn data prepare: NAME --source PATH --out DIR; see "
    "`slotattn data prepare --help`",
    "train property --iters x": "Error parsing --iters: no type matching INT could be instantiated from ['x']; Got "
    "errors: - <class 'int'>: invalid literal for int() with base 10: 'x'; see `slotattn train property --help`",
}


@pytest.mark.parametrize("arguments", MESSAGES)
def test_one_line_and_the_right_help(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments.split()) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"slotattn: {MESSAGES[arguments]}")
    assert told.endswith(" --help`\n")
    assert "None" not in told
    assert told.count("\n") == 1


def test_the_same_on_a_terminal_without_boxes() -> None:
    arguments = "train discovery --presset quick"
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "slotattn_fast.cli", *arguments.split()]
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"slotattn: {MESSAGES[arguments]}\n")
