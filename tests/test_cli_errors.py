"""Wrong usage is told in one line that names what came and the command whose help to read."""

import os
import subprocess
import sys

import pytest

from slotattn_fast import cli

MESSAGES = {
    "paper --scale foo": "scale: got 'foo', expected one of paper, quick, smoke; see `slotattn paper --help`",
    "train discovery --presset quick": "no option --presset, near: --preset; see `slotattn train discovery --help`",
    "train discovery --step 4": "no option --step, near: --steps; see `slotattn train discovery --help`",
    "train discovery --batch_sise 4 --no-compile": "no option --batch_sise, near: --batch-size; no option "
    "--no-compile, near: --compile; see `slotattn train discovery --help`",
    "data prepare --sorce F --out new tetrominoes": "no option --sorce, near: --source; see `slotattn data prepare --h",
    "data show tetrominoes --seed=3": "no option --seed; see `slotattn data show --help`",
    "data --out new": "no option --out; see `slotattn data --help`",
    "show show --output new": "no option --output, near: --out; see `slotattn show --help`",
    "train discovery -s 3": "Unrecognized options: -s, 3; see `slotattn train discovery --help`",
    "foo": "Unrecognized options: foo; Available subcommands: train, data, eval, show, paper, info; see "
    "`slotattn --help`",
    "train": "Expected one of {discovery, property, resume}; see `slotattn train --help`",
    "train resume": "Missing from slotattn train resume: RUN; see `slotattn train resume --help`",
    "data prepare": "Missing from slotattn data prepare: NAME --source PATH --out DIR; see "
    "`slotattn data prepare --help`",
    "train property --iters x": "iters: got 'x', expected an integer; see `slotattn train property --help`",
    "train discovery --steps 1e3": "steps: got '1e3', expected an integer; see `slotattn train discovery --help`",
    "train discovery --lr fast": "lr: got 'fast', expected a number; see `slotattn train discovery --help`",
    "train discovery --lr": "lr: got nothing, expected a value; see `slotattn train discovery --help`",
    "train discovery --encoder-strides 1 x": "encoder_strides: got '1', 'x', expected integers; see `slotattn train d",
    "data generate tetrominoes --out X --train two": "train: got 'two', expected an integer; see `slotattn data gene",
    "eval RUN --iters x": "iters: got 'x', expected integers; see `slotattn eval --help`",
    "paper --seeds x": "seeds: got 'x', expected an integer; see `slotattn paper --help`",
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
