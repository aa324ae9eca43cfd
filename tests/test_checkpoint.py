"""Checkpoints survive a crash while they are written, and a damaged one is never taken for a good one."""

import zipfile
from pathlib import Path

import pytest
import torch

from slotattn_fast.train import checkpoint
from slotattn_fast.train.checkpoint import Checkpoint, CheckpointError


def _checkpoint(step: int) -> Checkpoint:
    weight = torch.full((40, 40), float(step))
    return Checkpoint(step, {"weight": weight}, {"state": {}, "param_groups": []}, {"steps": 50}, [0.5])


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_and_last_two_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, _checkpoint(step))
    assert _names(tmp_path) == ["step-00000020.pt", "step-00000030.pt"]
    newest, passed_over = checkpoint.load_newest(tmp_path)
    assert newest is not None
    assert newest.step == 30
    assert torch.equal(newest.model["weight"], _checkpoint(30).model["weight"])
    assert passed_over == []


def test_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path) == (None, [])


@pytest.mark.parametrize("culprit", ["torch.save", "os.fsync", "os.replace"])
def test_failure_while_saving_keeps_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, culprit: str) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, _checkpoint(step))

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(culprit, full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, _checkpoint(30))
    assert _names(tmp_path) == ["step-00000010.pt", "step-00000020.pt"]
    assert checkpoint.load(tmp_path / "step-00000020.pt").step == 20


def test_kill_while_saving_leaves_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, _checkpoint(10))
    (tmp_path / ".step-00000020.pt.123.tmp").write_bytes(b"half a checkpoint")
    newest, _ = checkpoint.load_newest(tmp_path)
    assert newest is not None
    assert newest.step == 10
    checkpoint.save(tmp_path, _checkpoint(20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010.pt", "step-00000020.pt"]


def _flip_a_weight(path: Path) -> None:
    """One bit of one stored number, which torch.load alone would not notice."""
    with zipfile.ZipFile(path) as archive:
        (weight,) = [info for info in archive.infolist() if info.file_size == 40 * 40 * 4]
    content = bytearray(path.read_bytes())
    content[weight.header_offset + 3000] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_flip_a_weight, _truncate, _empty])
def test_damaged_newest_falls_back(tmp_path: Path, damage) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, _checkpoint(step))
    damage(tmp_path / "step-00000020.pt")
    newest, passed_over = checkpoint.load_newest(tmp_path)
    assert newest is not None
    assert newest.step == 10
    (line,) = passed_over
    assert "step-00000020.pt: damaged" in line
    # Going on from step 10, the damaged file must not be kept in the place of a good one.
    checkpoint.save(tmp_path, _checkpoint(15))
    assert _names(tmp_path) == ["step-00000010.pt", "step-00000015.pt"]


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    _empty(checkpoint.save(tmp_path, _checkpoint(10)))
    with pytest.raises(CheckpointError, match=r"step-00000010\.pt: damaged"):
        checkpoint.load_newest(tmp_path)


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 99, "step": 1, "model": {}, "optimizer": {}}, tmp_path / "step-00000001.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of format 2"):
        checkpoint.load(tmp_path / "step-00000001.pt")


@pytest.mark.parametrize("wrong", [{"step": "x"}, {"step": -5}, {"config": []}, {"model": []}, {"optimizer": 3}])
def test_wrong_contents_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = checkpoint.save(tmp_path, _checkpoint(10))
    torch.save({**torch.load(path, weights_only=True), **wrong}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of format 2"):
        checkpoint.load(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit('the pickle ran')",))

    path = tmp_path / "step-00000001.pt"
    torch.save({"format": 2, "step": 1, "model": Payload(), "optimizer": {}, "config": {}, "losses": []}, path)
    with pytest.raises(CheckpointError, match="UnpicklingError"):
        checkpoint.load(path)
