"""The command line from end to end on a run of a few steps, and every failure as one line."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from child import in_child
from PIL import Image
from tiny import SIZES

import slotattn_fast
from slotattn_fast import cli
from slotattn_fast.cli_train import Resume
from slotattn_fast.train import discovery, evaluation, run_data, run_folder
from slotattn_fast.train import run as run_module

TINY = ["--steps", "3", "--batch-size", "2"]
SMALL = [*SIZES, "--iters", "2"]


def _train(out: Path, name: str, *options: str) -> int:
    return cli.main(["train", "discovery", *TINY, "--out", str(out), "--name", name, *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run, shared; tests that change a run work on a copy of it."""
    out = tmp_path_factory.mktemp("runs")
    assert _train(out, "tiny") == 0
    return out / "tiny"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "tiny")


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shorter evaluation, for tests of something else."""
    monkeypatch.setattr(discovery, "EVAL_SCENES", run_data.EVAL_BATCH)


def _files(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


def _contents(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in _files(run) if (run / name).is_file()}


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Of an error, which may come after the line of a run's start."""
    captured = capsys.readouterr()
    assert all(line.endswith(" steps on cpu") for line in captured.out.splitlines())
    (line,) = captured.err.splitlines()
    assert line.startswith("slotattn: ")
    return line


def test_exactly_these_files(finished: Path) -> None:
    assert [name for name in _files(finished) if "tfevents" not in name] == [
        "checkpoints",
        "checkpoints/step-00000003.pt",
        "config.json",
        "env.json",
        "eval.json",
        "images",
        "images/step-00000003.png",
        "iterations.png",
        "lock",
        "metrics.csv",
        "model.safetensors",
        "slots.png",
        "tb",
    ]
    assert len(list((finished / "tb").iterdir())) == 1


def test_contents_of_the_run_folder(finished: Path) -> None:
    config, env, result = (json.loads((finished / f"{name}.json").read_text()) for name in ("config", "env", "eval"))
    assert (config["format"], config["preset"], config["steps"], config["batch_size"]) == (3, "quick", 3, 2)
    assert (env["torch"], env["threads"], env["device"]) == (torch.__version__, torch.get_num_threads(), "cpu")
    root = Path(slotattn_fast.__file__).resolve().parents[1]
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert env["commit"].removesuffix("-dirty") == head.stdout.strip()
    assert (result["scenes"], result["left_out"]) == (320, 0)
    assert -1 <= result["fg_ari"] <= 1
    assert result["mse"] > 0
    assert (finished / "metrics.csv").read_text().splitlines()[0] == "step,loss,lr,images_per_second"
    with Image.open(finished / "slots.png") as picture:
        assert min(picture.size) > 500
    assert (finished / "slots.png").stat().st_size < 500_000
    weights = safetensors.torch.load_file(finished / "model.safetensors")
    saved = torch.load(finished / "checkpoints" / "step-00000003.pt", weights_only=True)["model"]
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[name], saved[name]) for name in weights)


def test_eval_gives_the_same_number(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run / "eval.json").read_text())
    (run / "eval.json").unlink()
    assert cli.main(["eval", str(run)]) == 0
    after = json.loads((run / "eval.json").read_text())
    for key in ("fg_ari", "mse", "scenes", "left_out"):
        assert after[key] == before[key]
    assert f"FG-ARI {before['fg_ari']:.4f} on 320 held-out scenes" in capsys.readouterr().out


def test_lost_weights_come_back_from_the_checkpoints(run: Path) -> None:
    path = run / "model.safetensors"
    before = path.read_bytes()
    path.unlink()
    assert cli.main(["train", "resume", str(run)]) == 0
    assert path.read_bytes() == before


def test_show_draws_the_same_picture(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "slots.png").read_bytes()
    (run / "slots.png").unlink()
    assert cli.main(["show", str(run)]) == 0
    assert (run / "slots.png").read_bytes() == before
    assert capsys.readouterr().out == f"{run / 'slots.png'}\n{run / 'iterations.png'}\n"


@pytest.mark.usefixtures("few_scenes")
def test_options_override_the_preset(tmp_path: Path) -> None:
    options = [
        "--seed",
        "5",
        "--lr",
        "1e-5",
        "--num-slots",
        "3",
        "--iters",
        "1",
        "--device",
        "cpu",
        "--backend",
        "torch",
    ]
    assert _train(tmp_path, "other", *options) == 0
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    assert (config["seed"], config["lr"], config["device"]) == (5, 1e-5, "cpu")
    assert (config["model"]["num_slots"], config["model"]["iters"], config["model"]["backend"]) == (3, 1, "torch")


@pytest.mark.usefixtures("few_scenes")
def test_default_name(tmp_path: Path) -> None:
    assert cli.main(["train", "discovery", "--steps", "1", "--batch-size", "1", "--out", str(tmp_path)]) == 0
    (run,) = tmp_path.iterdir()
    assert run.name.startswith("discovery-tetrominoes-20")


def test_existing_folder_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _contents(run)
    assert _train(run.parent, "tiny") == 1
    assert "exists already and is not overwritten" in _one_line(capsys)
    assert _contents(run) == before


@pytest.mark.parametrize("command", [["eval"], ["show"], ["train", "resume"]])
def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert cli.main([*command, str(tmp_path / "absent")]) == 1
    assert "no such run folder" in _one_line(capsys)
    assert _files(tmp_path) == []


def _no_config(run: Path) -> None:
    (run / "config.json").unlink()


def _half_a_config(run: Path) -> None:
    path = run / "config.json"
    path.write_text(path.read_text()[:100])


def _other_format(run: Path) -> None:
    path = run / "config.json"
    path.write_text(path.read_text().replace('"format": 3', '"format": 99'))


def _bad_value(run: Path) -> None:
    path = run / "config.json"
    path.write_text(path.read_text().replace('"steps": 3', '"steps": 0'))


def _unknown_model_field(run: Path) -> None:
    path = run / "config.json"
    path.write_text(path.read_text().replace('"num_slots"', '"slots"'))


def _truncated_weights(run: Path) -> None:
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _other_weights(run: Path) -> None:
    (run / "model.safetensors").write_bytes(safetensors.torch.save({"weight": torch.zeros(2)}))


def _unfinished(run: Path) -> None:
    (run / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_config, "config.json: missing"),
        (_half_a_config, "config.json: damaged"),
        (_other_format, "format 99, expected 3"),
        (_bad_value, "config.json: damaged (steps: got 0"),
        (_unknown_model_field, "config.json: damaged"),
        (_truncated_weights, "model.safetensors: damaged"),
        (_other_weights, "model.safetensors: damaged"),
        (_unfinished, "slotattn train resume"),
    ],
)
@pytest.mark.parametrize("command", ["eval", "show"])
def test_damaged_folder(run: Path, capsys: pytest.CaptureFixture[str], damage, message: str, command: str) -> None:
    damage(run)
    before = _contents(run)
    assert cli.main([command, str(run)]) == 1
    assert message in _one_line(capsys)
    assert _contents(run) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "steps: got 0"),
        (["--batch-size", "-4"], "batch_size: got -4"),
        (["--lr", "-1"], "lr: got -1.0"),
        (["--lr", "inf"], "lr: got inf"),
        (["--num-slots", "0"], "num_slots"),
        (["--iters", "-1"], "iters"),
        (["--seed", "-1"], "seed: got -1"),
        (["--steps", "many"], "steps: got 'many', expected an integer; see `slotattn train discovery --help`"),
        (["--device", "abacus"], "device: got 'abacus', expected one of auto, cpu, cuda; see"),
        (["--preset", "photos"], "preset: got 'photos', expected one of clevr6, "),
        (["--preset", "huge"], "preset: got 'huge', expected one of clevr6, "),
        (["--backend", "magic"], "backend: got 'magic', expected one of auto, "),
        (["--colour", "red"], "--colour"),
        (["--softmax-over", "inputs"], "aggregation: got 'mean', expected 'sum' with softmax_over='inputs'"),
        (["--decay", "exponential"], "decay_steps: got None, expected an integer of at least 1"),
        (["--decay-steps", "5"], "decay_steps: got 5, expected None with decay='cosine'; leave it out, or take"),
        (["--name", "a/b"], "name: got 'a/b'"),
        (["--name", ".."], "name: got '..'"),
        (["--name", ""], "name: got '', expected the name of one folder"),
    ],
)
def test_bad_option(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert cli.main(["train", "discovery", "--out", str(tmp_path / "runs"), *options]) == 2
    assert message in _one_line(capsys)
    assert _files(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train(tmp_path / "runs", "x", "--device", "cuda") == 1
    assert "finds no CUDA device" in _one_line(capsys)
    assert _files(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_triton_where_it_cannot_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert _train(tmp_path / "runs", "x", "--backend", "triton") == 1
    assert "Triton kernels need" in _one_line(capsys)
    assert _files(tmp_path) == []


@pytest.mark.parametrize(
    "options", [["--num-slots", "70"], ["--softmax-over", "inputs", "--aggregation", "sum"]], ids=["slots", "softmax"]
)
def test_triton_where_it_cannot_serve_the_model(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(tmp_path / "runs", "x", "--backend", "triton", *options) == 1
    assert 'backend="triton" cannot serve this call' in _one_line(capsys)
    assert _files(tmp_path) == []


def test_evaluation_where_the_run_s_backend_cannot_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["model"]["backend"] = "triton"
    (copy / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert cli.main(["eval", str(copy), "--device", "cpu"]) == 1
    assert 'backend="triton" cannot serve this call' in _one_line(capsys)


def test_too_little_memory_to_evaluate(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(evaluation, "evaluate", fails)
    assert cli.main(["eval", str(run)]) == 1
    assert _one_line(capsys).startswith("slotattn: out of memory (DefaultCPUAllocator")


def test_resume_of_a_complete_run_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _contents(run)
    assert cli.main(["train", "resume", str(run)]) == 1
    assert "complete after 3 steps" in _one_line(capsys)
    assert _contents(run) == before


@pytest.mark.usefixtures("few_scenes")
def test_sigterm_then_resume_equals_an_uncut_run(tmp_path: Path) -> None:
    steps = [*SMALL, "--steps", "7", "--batch-size", "2", "--out", str(tmp_path)]
    errors = tmp_path / "errors"

    def stopped() -> None:
        loss, count = discovery.Discovery.loss, 0

        def counted(*given: Any) -> torch.Tensor:
            nonlocal count
            count += 1
            if count == 4:
                signal.raise_signal(signal.SIGTERM)
            return loss(*given)

        discovery.Discovery.loss = counted
        sys.stderr = errors.open("w", buffering=1)
        os._exit(cli.main(["train", "discovery", *steps, "--name", "cut"]))

    assert in_child(stopped) == 128 + signal.SIGTERM
    assert "SIGTERM: checkpoint saved at step 4; go on with" in errors.read_text().splitlines()[-1]
    assert not (tmp_path / "cut" / "model.safetensors").exists()

    assert cli.main(["train", "resume", str(tmp_path / "cut")]) == 0
    assert cli.main(["train", "discovery", *steps, "--name", "uncut"]) == 0
    cut, uncut = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("cut", "uncut"))
    assert all(torch.equal(cut[name], uncut[name]) for name in uncut)
    assert all(
        json.loads((tmp_path / "cut" / "eval.json").read_text())[key]
        == json.loads((tmp_path / "uncut" / "eval.json").read_text())[key]
        for key in ("fg_ari", "mse")
    )


@pytest.mark.usefixtures("few_scenes")
def test_a_compiled_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all of torch.compile but the code that Inductor writes, which takes half a minute."""
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    assert _train(tmp_path, "plain", *SMALL) == 0
    assert graphs["unique_graphs"] == before
    assert _train(tmp_path, "compiled", *SMALL, "--compile") == 0
    assert graphs["unique_graphs"] > before
    runs = [tmp_path / name for name in ("plain", "compiled")]
    one, other = (safetensors.torch.load_file(run / "model.safetensors") for run in runs)
    # Adam makes steps of the size of the rate, however small a gradient is.
    assert all((one[name] - other[name]).abs().max() < 3 * 2e-3 * 2 / 500 for name in one)
    rows = [(run / "metrics.csv").read_text().splitlines()[1].split(",")[1] for run in runs]
    assert float(rows[0]) == pytest.approx(float(rows[1]), rel=1e-4)


@pytest.mark.usefixtures("few_scenes")
def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fails))
    assert _train(tmp_path, "x", *SMALL, "--compile") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("slotattn: compile: torch.compile failed (")
    assert error.endswith(f"); go on with `slotattn train resume {tmp_path / 'x'} --no-compile`")
    assert "no compiler" in error
    assert cli.main(["train", "resume", str(tmp_path / "x"), "--no-compile"]) == 0


@pytest.mark.usefixtures("few_scenes")
def test_a_run_with_a_graph_goes_on_without_and_a_plain_one_not_with(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"cuda_graph": True, "device": "auto"}))
    (run / "eval.json").unlink()
    resume = ["train", "resume", str(run), "--device", "cpu"]
    message = "cuda_graph: got True on a CPU, expected one CUDA device; leave out --cuda-graph, or resume with --no-cud"
    assert cli.main(resume) == 2
    assert message in _one_line(capsys)
    assert cli.main([*resume, "--no-cuda-graph"]) == 0
    (run / "config.json").write_text(json.dumps(settings))
    (run / "eval.json").unlink()
    capsys.readouterr()
    assert cli.main([*resume, "--cuda-graph"]) == 2
    assert message in _one_line(capsys)


@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize("compiled", [True, False])
def test_other_processes_go_on_as_this_one_does(run: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """Whatever config.json has."""
    commands = []

    def started(command: list[str], devices: int) -> contextlib.AbstractContextManager[None]:
        commands.append(cli._parse(command))
        return contextlib.nullcontext()

    monkeypatch.setattr(run_module, "other_processes", started)
    monkeypatch.setattr(run_module, "fit", lambda *_: None)
    (run / "eval.json").unlink()
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"compile": not compiled, "cuda_graph": True}))
    given = ["--device", "cpu", "--no-cuda-graph", "--compile" if compiled else "--no-compile"]
    assert cli.main(["train", "resume", str(run), *given]) == 0
    assert commands == [Resume(run, "cpu", 1, compile=compiled, cuda_graph=False)]


def test_a_signal_that_comes_too_late_for_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "fit", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert _train(tmp_path, "x", "--warmup-steps", "0") == 128 + signal.SIGTERM
    assert "SIGTERM: checkpoint saved at step 3; go on with" in _one_line(capsys)
    assert not (tmp_path / "x" / "model.safetensors").exists()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device", "metrics.csv")

    monkeypatch.setattr(run_module, "train", fails)
    assert _train(tmp_path, "x", "--warmup-steps", "0") == 1
    line = _one_line(capsys)
    assert "No space left on device" in line
    assert line.endswith(f"when that is mended, go on with `slotattn train resume {tmp_path / 'x'}`")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_too_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(run_module, "train", fails)
    assert _train(tmp_path, "x", "--warmup-steps", "0") == 1
    assert _one_line(capsys).startswith("slotattn: out of memory; train anew with a smaller --batch-size or model (")


def test_what_is_not_foreseen_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(run_module, "train", fails)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        _train(tmp_path, "x")


def test_a_warmup_that_does_not_end_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], few_scenes) -> None:
    assert _train(tmp_path, "x") == 0
    said = capsys.readouterr().err.splitlines()[0]
    assert said == (
        "slotattn: a warm-up of 500 steps does not end within 3: the rate stays below --lr 0.002; see --warmup-steps"
    )


def test_a_run_in_use_by_another_process_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "model.safetensors").unlink()
    before = _contents(run)
    with run_folder.in_use(run):
        assert cli.main(["train", "resume", str(run)]) == 1
    assert "another process is training it; wait for that, or stop it" in _one_line(capsys)
    assert _contents(run) == before


def test_a_configuration_that_was_edited_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "model.safetensors").unlink()
    path = run / "config.json"
    path.write_text(path.read_text().replace('"steps": 3', '"steps": 5').replace('"iters": 10', '"iters": 4'))
    before = _contents(run)
    assert cli.main(["train", "resume", str(run)]) == 1
    line = _one_line(capsys)
    assert "iters was 10 and is 4; steps was 3 and is 5; put that back, or train anew" in line
    assert _contents(run) == before


@pytest.mark.parametrize("arguments", [["--version"], ["data", "info", "tetrominoes"]])
def test_a_reader_who_has_seen_enough_is_no_failure(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "slotattn_fast.cli", *arguments]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert ended.stderr == ""
    assert ended.returncode == 141


class _Closed(io.StringIO):
    """An output that is no file, and whose reader is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "discovery", *TINY, "--out", "{out}", "--name", "x"], "go on with `slotattn train resume {out}/x`"),
        (["paper", "figure-3", "--scale", "smoke", "--out", "{out}"], "the same command goes on"),
        (["paper"], ""),
    ],
)
def test_what_goes_on_says_so_where_the_reader_is_gone(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdout", _Closed())
    assert cli.main([argument.format(out=tmp_path) for argument in arguments]) == 141
    told = capsys.readouterr().err
    assert told.endswith(f"{said.format(out=tmp_path)}\n" if said else "")
    assert bool(told) == bool(said)


def test_a_picture_that_cannot_lie_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = run / "slots.png"
    picture.unlink()
    picture.mkdir()
    (run / "file").touch()
    assert cli.main(["show", str(run)]) == 1
    assert _one_line(capsys) == f"slotattn: [Errno 21] Is a directory: '{picture}'; choose another --out"
    assert cli.main(["show", str(run), "--out", str(run / "file" / "new")]) == 1
    assert _one_line(capsys) == f"slotattn: [Errno 20] Not a directory: '{run / 'file' / 'new'}'; choose another --out"


PARSER = {
    "missing": "raise ModuleNotFoundError('no parser here')",
    "stopped": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
}


@pytest.mark.parametrize(
    ("parser", "arguments", "code", "out", "error"),
    [
        ("missing", "--version", 0, f"slotattn-fast {slotattn_fast.__version__}", ""),
        ("missing", "info", 0, "slotattn_fast ", ""),
        ("missing", "--help", 1, "", "slotattn: no parser here; the command line needs `pip install 'slotattn-fast["),
        ("stopped", "--help", 130, "", "slotattn: interrupted\n"),
    ],
)
def test_without_the_parser(tmp_path: Path, parser: str, arguments: str, code: int, out: str, error: str) -> None:
    """Whether it is not installed, or Ctrl-C comes while it is imported."""
    (tmp_path / "tyro.py").write_text(PARSER[parser])
    command = [sys.executable, "-m", "slotattn_fast.cli", arguments]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == code
    assert ended.stdout.startswith(out)
    assert ended.stderr.startswith(error)
    assert bool(ended.stdout) == bool(out)
    assert ended.stderr.count("\n") == bool(error)


def test_info_leaves_out_what_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("slotattn_fast.train.environment._commit", lambda: None)
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "commit" not in shown
    assert "None" not in shown


def test_version_and_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"slotattn-fast {slotattn_fast.__version__}\n"
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert torch.__version__ in shown
    assert "threads" in shown
    assert "backend          torch: " in shown or torch.cuda.is_available()
