"""The contact sheet: scenes above, true objects below, each in its place."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slotattn_fast.data.errors import DataError
from slotattn_fast.data.generated import sampler
from slotattn_fast.data.prepare import generate
from slotattn_fast.report.contact_sheet import GAP, write_contact_sheet
from slotattn_fast.report.page import NEUTRAL, PALETTE


def sheet(data: str, tmp_path: Path) -> np.ndarray:
    write_contact_sheet(data, tmp_path / "sheet.png")
    return np.asarray(Image.open(tmp_path / "sheet.png"))


def tile(page: np.ndarray, row: int, column: int, size: int, scale: int) -> np.ndarray:
    """A tile [size, size, 3], its repeated pixels checked and taken once."""
    top, left = (GAP + n * (size * scale + GAP) for n in (row, column))
    large = page[top : top + size * scale, left : left + size * scale]
    small = large[::scale, ::scale]
    np.testing.assert_array_equal(large, small.repeat(scale, 0).repeat(scale, 1))
    return small


def test_scenes_and_their_objects_stand_below_each_other(tmp_path: Path) -> None:
    page = sheet("tetrominoes", tmp_path)
    scenes = sampler("tetrominoes")(0, np.arange(24))
    for number in (0, 7, 8, 23):
        row, column = 2 * (number // 8), number % 8
        np.testing.assert_array_equal(tile(page, row, column, 35, 4), scenes["images"][number])
        colours = np.concatenate([[[NEUTRAL] * 3], PALETTE])[scenes["labels"][number]]
        np.testing.assert_allclose(tile(page, row + 1, column, 35, 4), colours * 255, atol=0.5)
    assert page.shape == (GAP + 6 * (140 + GAP), GAP + 8 * (140 + GAP), 3)
    assert (page[:GAP] == 255).all()


def test_one_channel_is_grey_and_a_small_folder_gives_a_small_sheet(tmp_path: Path) -> None:
    folder = generate("multi-dsprites-binarized", tmp_path / "data", train=3, held_out=1)
    page = sheet(str(folder.path), tmp_path / "made")
    image = folder.splits["train"]["images"][2]
    np.testing.assert_array_equal(tile(page, 0, 2, 64, 2), np.repeat(image, 3, axis=2))
    assert page.shape == (GAP + 2 * (128 + GAP), GAP + 3 * (128 + GAP), 3)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a prepared folder nor one of"):
        write_contact_sheet("photos", tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
