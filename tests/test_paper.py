"""`slotattn paper` from the command to its report, with models that train in a moment."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from child import exit_code, start_child
from tiny import TINY

from slotattn_fast import cli
from slotattn_fast.data.prepare import generate
from slotattn_fast.lock import locked
from slotattn_fast.paper import bases, runner
from slotattn_fast.paper.document import (
    Bullets,
    Commands,
    Heading,
    Link,
    Paragraph,
    Picture,
    Table,
    to_html,
    to_markdown,
)
from slotattn_fast.paper.experiments import EXPERIMENTS
from slotattn_fast.paper.trainings import jobs
from slotattn_fast.train import discovery, errors, run_folder
from slotattn_fast.train.errors import RunError
from slotattn_fast.train.setting import Setting

SMOKE = bases._CONFIGS["smoke"]
QUICK = replace(
    SMOKE["tetrominoes"],
    steps=2,
    checkpoint_every=1,
    model={**asdict(TINY), "image_size": 35, "broadcast_size": 9, "num_slots": 3},
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SMOKE, "tetrominoes", QUICK)
    monkeypatch.setattr(discovery, "EVAL_SCENES", 4)


def paper(*words: str) -> int:
    return cli.main(["paper", *words])


def smoke(out: Path, *words: str) -> int:
    """Of Tetrominoes alone."""
    only = () if {"--only", "--report-only"} & {*words} else ("--only", "tetrominoes")
    return paper(*words, "--scale", "smoke", "--out", str(out), *only)


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert paper() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(EXPERIMENTS) + 1
    (line,) = (line for line in lines if line.startswith("figure-7 "))
    assert line.endswith("Value aggregation (Figure 7, Appendix B): 6 trainings of 150,000 or 500,000 steps")


def test_unknown_experiments_get_the_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert paper("figure7", "--scale", "smoke") == 2
    assert "no experiment 'figure7', near: figure-7" in capsys.readouterr().err
    assert paper("figure-5") == 2
    assert "near: figure-5-left, figure-5-center, figure-5-right; " in capsys.readouterr().err
    assert paper("xyz") == 2
    assert "no experiment 'xyz'; `slotattn paper` lists all" in capsys.readouterr().err


def test_from_the_command_to_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert smoke(out, "figure-7", "figure-2", "figure-3", "--seeds", "2") == 0
    printed = capsys.readouterr().out
    assert "tetrominoes: a generated look-alike stands in" in printed
    names = [f"tetrominoes{arm}" for arm in ("", "-aggregation-sum", "-aggregation-sum_norm")]
    assert sorted(p.name for p in (out / "runs").iterdir()) == sorted(f"{n}-seed-{s}" for n in names for s in (0, 1))
    scores = {
        seed: json.loads((out / "runs" / f"tetrominoes-seed-{seed}" / "eval.json").read_bytes())["fg_ari"]
        for seed in (0, 1)
    }
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    mean = 50 * (scores[0] + scores[1])
    deviation = 100 * abs(scores[0] - scores[1]) / 2**0.5
    row = f"| object discovery: weighted mean | 2 | {mean:.1f} +- {deviation:.1f} |"
    assert row in text
    assert page.count("data:image/") == text.count("](figures/") == 2 + 2  # plots; slots and iterations
    assert "http" not in page
    assert "slotattn train discovery --preset quick" in page
    # Nothing is done again, and a folder that is there gets more seeds.
    before = {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("*") if p.name != "lock"}
    assert smoke(out, "figure-7", "--seeds", "3") == 0
    assert all(p.stat().st_mtime_ns == then for p, then in before.items() if p.is_file())
    assert "| object discovery: weighted mean | 3 |" in (out / "report.md").read_text()


def test_prepared_folders_take_the_place_of_look_alikes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, folder = tmp_path / "out", generate("tetrominoes", tmp_path / "tetrominoes", train=4, held_out=4).path
    for words in ((), ("--report-only",)):
        assert smoke(out, "figure-3", "--data", str(tmp_path), *words) == 0
        assert f" --data {folder} " in (out / "report.md").read_text()
        (out / "report.md").unlink()
    assert "tetrominoes: a generated look-alike stands in; `slotattn data generate` made" in capsys.readouterr().out
    config = json.loads((out / "runs" / "tetrominoes-seed-0" / "config.json").read_bytes())
    assert config["data"] == str(folder)


def test_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit, calls = runner.train, []

    def stopped(run: Path, *rest: object) -> object:
        calls.append(run.name)
        if len(calls) == 2:
            raise errors.Stopped(signal.SIGTERM, 1)
        return fit(run, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "train", stopped)
    assert smoke(tmp_path, "figure-7") == 128 + 15
    assert "the same command goes on" in capsys.readouterr().err
    assert smoke(tmp_path, "figure-7") == 0
    assert calls == [
        "tetrominoes-seed-0",
        *["tetrominoes-aggregation-sum-seed-0"] * 2,
        "tetrominoes-aggregation-sum_norm-seed-0",
    ]


def test_a_run_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = runner.train

    def fails(run: Path, *rest: object) -> object:
        if run.name == "tetrominoes-aggregation-sum-seed-0":
            raise RunError("the loss is not finite")
        return fit(run, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(runner, "train", fails)
        assert smoke(tmp_path, "figure-7") == 1
    assert "tetrominoes-aggregation-sum-seed-0: the loss is not finite" in capsys.readouterr().err
    text = (tmp_path / "report.md").read_text()
    assert "weighted sum, seed 0: no result: the loss is not finite" in text
    assert "| object discovery: weighted sum | 0 | - |" in text
    assert smoke(tmp_path, "figure-7") == 0
    assert "no result" not in (tmp_path / "report.md").read_text()


def test_options_without_a_scale_are_not_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert paper("figure-7", "--only", "clevr6", "--report-only") == 2
    assert capsys.readouterr().err == (
        "slotattn: scale: got none, which lists the experiments and takes no --only, --report-only; add --scale, or "
        "leave that out\n"
    )


@pytest.mark.parametrize("words", [("--seeds", "2"), ("--only", "tetrominoes"), ("--device", "cpu")])
def test_the_report_takes_no_options_of_trainings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    runner.open_folder(tmp_path, "smoke", EXPERIMENTS)
    assert smoke(tmp_path, "--report-only", *words) == 2
    assert capsys.readouterr().err == (
        f"slotattn: report_only: the report is of all that is there and takes no {words[0]}; leave that out\n"
    )
    assert not (tmp_path / "report.md").exists()


def test_folders_that_are_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert smoke(tmp_path, "figure-3") == 1
    assert "is not a folder of `slotattn paper`" in capsys.readouterr().err
    out = tmp_path / "out"
    assert runner.open_folder(out, "quick", []) == []
    assert smoke(out, "figure-3") == 1
    assert "holds runs of scale 'quick', not 'smoke'" in capsys.readouterr().err
    (out / "paper.json").write_text('{"format": 0, "scale": "smoke"}')
    assert smoke(out, "figure-3") == 1
    assert "format 0, expected 1" in capsys.readouterr().err


def test_a_run_of_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke(tmp_path, "figure-3") == 0
    before = (tmp_path / "runs/tetrominoes-seed-0/model.safetensors").read_bytes()
    monkeypatch.setitem(SMOKE, "tetrominoes", replace(QUICK, lr=1e-3))
    assert smoke(tmp_path, "figure-3") == 1
    assert "has other settings (lr: 0.002, expected 0.001)" in capsys.readouterr().err
    assert (tmp_path / "runs/tetrominoes-seed-0/model.safetensors").read_bytes() == before
    assert not (tmp_path / "runs/tetrominoes-seed-0" / runner.FAILURE).exists()


@pytest.mark.parametrize(
    ("words", "said"), [(("--seeds", "0"), "seeds: got 0"), (("--data", "no"), "data: got no, which is no folder")]
)
def test_values_that_cannot_be_used(
    tmp_path: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke(tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner.open_folder(tmp_path, "smoke", ["figure-7"])
    first, *others = jobs(["figure-7"], "smoke", 1, only=["tetrominoes"])
    run = first.training.run(tmp_path, 0)
    runner.require_run(first.training, 0, run)
    held = run_folder.in_use(run)
    held.__enter__()
    waited: list[float] = []

    def wait(seconds: float) -> None:
        assert all(run_folder.is_complete(job.training.run(tmp_path, 0)) for job in others)
        assert not run_folder.is_complete(run)
        waited.append(seconds)
        held.__exit__(None, None, None)

    monkeypatch.setattr(runner, "sleep", wait)
    assert runner.run_all([first, *others], tmp_path, None) == {}
    assert waited == [runner.WAIT]
    assert run_folder.is_complete(run)


def test_processes_share_a_folder(tmp_path: Path) -> None:
    workers = [start_child(lambda: os._exit(smoke(tmp_path, "figure-3", "--seeds", "4"))) for _ in range(2)]
    assert [exit_code(worker) for worker in workers] == [0, 0]
    assert all(run_folder.is_complete(run) for run in (tmp_path / "runs").iterdir())
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_the_folder_of_a_process_that_is_making_it_is_waited_for(tmp_path: Path) -> None:
    # Not forked: it would inherit the lock that it is to wait for.
    code = "import sys; from pathlib import Path; from slotattn_fast.paper.runner import open_folder; "
    code += "print('ready', flush=True); open_folder(Path(sys.argv[1]), 'smoke', [])"
    with locked(tmp_path / "lock", None):
        worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(1)
        assert not (tmp_path / "paper.json").exists()
    assert worker.wait(60) == 0
    assert (tmp_path / "paper.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_the_device_is_that_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke(tmp_path, "figure-3", "--device", "cuda") == 1
    assert "cuda" in capsys.readouterr().err


def test_pictures_of_other_settings_have_a_folder_of_their_own(tmp_path: Path) -> None:
    runner.open_folder(tmp_path, "smoke", ["figure-3"])
    (job,) = jobs(["figure-3"], "smoke", 1, only=["tetrominoes"])
    assert runner.run_all([job._replace(drawn=(Setting(iters=2),))], tmp_path, None) == {}
    drawn = tmp_path / "pictures" / "tetrominoes-seed-0-iters-2"
    assert [path.name for path in sorted(drawn.iterdir())] == ["iterations.png", "slots.png"]
    assert list(drawn.parent.iterdir()) == [drawn]


def test_report_alone_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke(tmp_path / "new", "--report-only") == 1
    assert "no folder of `slotattn paper`" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    runner.open_folder(tmp_path, "smoke", EXPERIMENTS)
    assert smoke(tmp_path, "--report-only") == 0
    assert not list((tmp_path / "runs").iterdir())
    text = (tmp_path / "report.md").read_text()
    assert all(f"## {name}: " in text for name in EXPERIMENTS)


def test_a_damaged_note_can_be_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke(tmp_path, "figure-3") == 0
    for damage in ("{", "[]", '{"format": 1}', ""):
        (tmp_path / "paper.json").write_text(damage)
        assert smoke(tmp_path, "figure-3") == 1
        assert "paper.json: damaged" in capsys.readouterr().err
    (tmp_path / "paper.json").unlink()
    assert smoke(tmp_path, "figure-3") == 0
    assert "1 of 1 runs are complete" in capsys.readouterr().out


def test_blocks_are_written_safely(tmp_path: Path) -> None:
    picture = tmp_path / "figures" / "a.png"
    picture.parent.mkdir()
    shutil.copy(Path(__file__).parents[1] / "docs" / "slots.png", picture)
    blocks = [
        Heading("a <b>", 2, "x"),
        Paragraph("1 < 2 & *3*"),
        Bullets(["a_b"]),
        Table([["a|b", "c"], [Link("1", "x"), "2"]]),
        Picture(picture, "it's <one>"),
        Commands("how", ["slotattn eval RUN <x>"]),
    ]
    page = to_html(blocks, "t<")
    assert "<b>" not in page
    assert "<title>t&lt;</title>" in page
    assert '<h2 id="x">a &lt;b&gt;</h2>' in page
    assert '<td class="word"><a href="#x">1</a></td><td>2</td>' in page
    text = to_markdown(blocks, tmp_path)
    assert "| a\\|b | c |\n| --- | ---: |\n| 1 | 2 |" in text
    assert "](figures/a.png)" in text
    assert "1 \\< 2 & \\*3\\*" in text
