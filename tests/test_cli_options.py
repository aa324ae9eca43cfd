"""What the command line takes: every setting an option and in the help, and what `--data` means."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest

from slotattn_fast import cli
from slotattn_fast.functional import BACKENDS
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.models.property_config import PropertyConfig
from slotattn_fast.models.slots_config import BackendName
from slotattn_fast.train.config import PRESETS, TaskName, TrainConfig


@pytest.mark.parametrize(
    ("options", "run", "model"),
    [
        ([], {}, {}),
        (["--no-use-gru", "--softmax-over", "inputs", "--aggregation", "sum"], {}, {"use_gru": False}),
        (["--encoder-strides", "1", "2", "2", "--scale", "1"], {}, {"encoder_strides": (1, 2, 2), "scale": 1.0}),
        (["--grouping", "slot-mlp", "--no-implicit"], {}, {"grouping": "slot-mlp", "implicit": False}),
        (["--preset", "clevr6", "--greyscale"], {"greyscale": True, "max_objects": 6}, {"image_channels": 1}),
        (["--preset", "clevr6", "--warmup-steps", "0"], {"warmup_steps": 0, "decay_steps": 100_000}, {}),
        (["--preset", "clevr6", "--decay", "none"], {"decay": "none", "decay_steps": None}, {}),
        (["--decay", "exponential", "--decay-steps", "9"], {"decay": "exponential", "decay_steps": 9}, {}),
        (["--precision", "32-true", "--compile"], {"precision": "32-true", "compile": True, "cuda_graph": False}, {}),
        (["--device", "cuda", "--cuda-graph", "--devices", "1"], {"device": "cuda", "cuda_graph": True}, {}),
    ],
)
def test_every_field_is_an_option(options: list[str], run: dict[str, object], model: dict[str, object]) -> None:
    config = cli._parse(["train", "discovery", *options]).config()
    preset = PRESETS["discovery"]["clevr6" if "clevr6" in options else "quick"]
    assert config == replace(preset, **run, model=config.model)
    assert config.model.items() >= {**preset.model, **model}.items()
    assert DiscoveryConfig(**config.model)


@pytest.mark.parametrize(("task", "model"), [("discovery", DiscoveryConfig), ("property", PropertyConfig)])
def test_every_field_is_in_the_help(
    task: TaskName, model: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main(["train", task, "--help"])
    shown = capsys.readouterr().out
    hidden = {"task", "model", "data_sha256"}
    for field in (*fields(TrainConfig), *fields(model)):
        assert (f"--{field.name.replace('_', '-')}" in shown) == (field.name not in hidden), field.name
    for preset in PRESETS[task]:
        assert preset in shown


def test_scenes_are_of_generated_data_alone(tmp_path: Path) -> None:
    def config(*options: str) -> TrainConfig:
        return cli._parse(["train", "property", *options]).config()

    assert config("--data", str(tmp_path)).scenes is None  # of a prepared folder, all
    assert config("--data", "clevr").scenes == PRESETS["property"]["quick"].scenes is not None
    with pytest.raises(ValueError, match=f"scenes: got 5 with {tmp_path}, a prepared folder, which is trained on in w"):
        config("--data", str(tmp_path), "--scenes", "5")


def test_help_is_light() -> None:
    """No command line that only prints help may import PyTorch or what draws pictures."""
    code = (
        "import sys\n"
        "from slotattn_fast import cli\n"
        "try: cli.main(['train', 'discovery', '--help'])\n"
        "finally:\n"
        "    heavy = {'torch', 'numpy', 'matplotlib', 'lightning_fabric'}\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=wide, check=False)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    for option in (
        "data",
        "preset",
        "out",
        "name",
        "seed",
        "steps",
        "batch-size",
        "lr",
        "num-slots",
        "iters",
        "device",
    ):
        assert f"--{option} " in done.stdout
    assert "quick: " in done.stdout
    assert "The paper's configurations" in " ".join(done.stdout.split())


def test_every_backend_can_be_asked_for() -> None:
    assert set(get_args(BackendName)) == set(BACKENDS)


def test_a_name_comes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tetrominoes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.TrainDiscovery(data="tetrominoes").config().data == "tetrominoes"
    assert cli.TrainDiscovery(data="./tetrominoes").config().data == str(tmp_path / "tetrominoes")
    assert cli.TrainDiscovery(data="absent").config().data == "absent"
    (tmp_path / "tetrominoes" / "manifest.json").touch()  # a prepared folder: not to be passed over in silence
    with pytest.raises(ValueError, match="data: got 'tetrominoes', a data set that is generated and also a prepared f"):
        cli.TrainDiscovery(data="tetrominoes").config()
    with pytest.raises(ValueError, match=r"give \./tetrominoes for the folder"):
        cli._parse(["eval", "run", "--data", "tetrominoes"]).setting(None)
    assert cli.TrainDiscovery(data="./tetrominoes").config().data == str(tmp_path / "tetrominoes")
