"""The folder of a run appears whole or not at all."""

from dataclasses import replace
from pathlib import Path

import pytest

from slotattn_fast.train import run_folder
from slotattn_fast.train.config import PRESETS
from slotattn_fast.train.errors import RunError

CONFIG = PRESETS["discovery"]["quick"]


def test_a_folder_that_is_being_made_leaves_nothing_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, values: object) -> None:
        assert path.parent.parent == tmp_path
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_folder.create(tmp_path / "run", CONFIG, {})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, values: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "write_json", full)
    with pytest.raises(RunError, match=r"run: cannot be made \(No space left on device\); choose another --out"):
        run_folder.create(tmp_path / "run", CONFIG, {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    run_folder.create(tmp_path / "run", CONFIG, {"which": "first"})
    with pytest.raises(RunError, match="exists already and is not overwritten"):
        run_folder.create(tmp_path / "run", CONFIG, {"which": "second"})
    assert run_folder.read_json(tmp_path / "run" / "env.json") == {"which": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert run_folder.read_config(tmp_path / "run") == CONFIG


def test_a_file_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(RunError, match="run: a file, expected the folder of a run; move it away, or name another"):
        run_folder.read_config(tmp_path / "run")


def test_generated_data_decide_by_their_name_and_prepared_data_by_their_contents() -> None:
    other = replace(CONFIG, data="multi-dsprites-binarized")
    assert run_folder.differences(CONFIG, other) == {"data": ("tetrominoes", "multi-dsprites-binarized")}
    prepared = replace(CONFIG, data="/here", data_sha256="1")
    assert run_folder.differences(prepared, replace(prepared, data="/there")) == {}
    changed = replace(prepared, data="/there", data_sha256="2")
    assert run_folder.differences(prepared, changed) == {"data_sha256": ("1", "2")}
