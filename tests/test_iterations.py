"""Slot Attention at work: what the model tells of each iteration, and the picture of it."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiles import assert_colour, at_own_resolution
from tiny import TINY

from slotattn_fast import reference
from slotattn_fast.models.discovery import ObjectDiscovery
from slotattn_fast.report.iterations import draw_iterations
from slotattn_fast.report.page import GAP, GROUP_GAP, HEADER, LABEL, MARGIN, NEUTRAL, PALETTE

IMAGES = torch.rand(2, 3, 11, 11, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1
NOISE = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("implicit", [False, True])
def test_each_iteration_is_where_a_shorter_run_ends(implicit: bool) -> None:
    model = ObjectDiscovery(replace(TINY, implicit=implicit)).double()
    every = model.iterations(IMAGES, 4, NOISE)
    assert every.attention.shape == (4, 2, 3, 6, 6)
    for t in range(4):
        output = model(IMAGES, iters=t + 1, noise=NOISE)
        torch.testing.assert_close(every.reconstruction[t], output.reconstruction)
        torch.testing.assert_close(every.rgb[t], output.rgb)
        torch.testing.assert_close(every.masks[t], output.masks)
    assert not any(x.requires_grad for x in every)
    assert len(model.iterations(IMAGES).masks) == TINY.iters


def test_other_slots_of_a_generator() -> None:
    model = ObjectDiscovery(TINY)
    images, seed = IMAGES.float(), torch.Generator()
    output = model(images, num_slots=5, generator=seed.manual_seed(1))
    every = model.iterations(images, num_slots=5, generator=seed.manual_seed(1))
    torch.testing.assert_close(every.masks[-1], output.masks)


def test_attention_lies_on_the_encoders_map() -> None:
    """Row by row, and is the reference's."""
    model = ObjectDiscovery(TINY).double()
    plain = reference.SlotAttention.paper(3, 8, input_dim=8, hidden_dim=8).double()
    plain.load_state_dict(model.slot_attention.state_dict())
    tokens = model.encoder(IMAGES)
    _, expected = plain(tokens, slots_init=plain.initial_slots(tokens, 3, noise=NOISE), return_attn="all")
    attention = model.iterations(IMAGES, noise=NOISE).attention
    for row, column in ((0, 0), (2, 5), (5, 2)):
        torch.testing.assert_close(attention[..., row, column], expected[..., 6 * row + column])


def test_what_has_no_iterations() -> None:
    with pytest.raises(ValueError, match="iterations: got a model with grouping='slot-mlp', which has none"):
        ObjectDiscovery(replace(TINY, grouping="slot-mlp")).iterations(IMAGES.float())
    with pytest.raises(ValueError, match="iters: got 0, expected at least 1"):
        ObjectDiscovery(TINY).iterations(IMAGES.float(), 0)
    with pytest.raises(ValueError, match="images: got shape"):
        ObjectDiscovery(TINY).iterations(IMAGES[0].float())


SIZE, SCALE, SLOTS, ITERS = 35, 4, 2, 3


def _picture(attention_of: float = 1) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]:
    """Two scenes: slot 0 holds ever more rows, and attends to as many of a map of half the size."""
    masks = np.zeros((ITERS, 2, SLOTS, SIZE, SIZE), np.float32)
    attention = np.zeros((ITERS, 2, SLOTS, 18, 18), np.float32)
    for t in range(ITERS):
        masks[t, :, 0, : 10 * (t + 1)] = 1
        attention[t, :, 0, : 5 * (t + 1)] = attention_of
        attention[t, 1, 1, :, 17] = attention_of / 2
    masks[:, :, 1] = 1 - masks[:, :, 0]
    images = np.broadcast_to(np.array([-1, 0.5], np.float32)[:, None, None, None], (2, SIZE, SIZE, 3))
    colours = np.linspace(-1, 1, ITERS * 2 * SLOTS, dtype=np.float32).reshape(ITERS, 2, SLOTS, 1, 1, 1)
    rgb = np.broadcast_to(colours, (ITERS, 2, SLOTS, SIZE, SIZE, 3))
    arrays = {"images": images, "reconstructions": rgb[:, :, 0], "rgb": rgb, "masks": masks, "attention": attention}
    file = io.BytesIO()
    draw_iterations(file, **arrays)
    return np.asarray(Image.open(file).convert("RGB")), arrays


def _tile(page: NDArray[np.uint8], scene: int, iteration: int, column: int) -> NDArray[np.float64]:
    """A tile at its own resolution, after checking that each of its pixels is a block of one colour."""
    side = SIZE * SCALE
    top = MARGIN + HEADER + (scene * ITERS + iteration) * (side + GAP) + scene * (GROUP_GAP - GAP)
    groups = (column >= 3) + (column >= 3 + SLOTS)
    left = MARGIN + LABEL + column * (side + GAP) + groups * (GROUP_GAP - GAP)
    return at_own_resolution(page, top, left, SIZE, SCALE)


def test_every_tile() -> None:
    page, arrays = _picture()
    side = SIZE * SCALE
    height = 2 * MARGIN + HEADER + 6 * side + 4 * GAP + GROUP_GAP
    assert page.shape == (height, 2 * MARGIN + LABEL + 7 * side + 4 * GAP + 2 * GROUP_GAP, 3)
    for scene in range(2):
        for t in range(ITERS):
            assert_colour(_tile(page, scene, t, 0), 1 if t else (arrays["images"][scene] + 1) / 2)
            assert_colour(_tile(page, scene, t, 1), (arrays["reconstructions"][t, scene] + 1) / 2)
            rows = 10 * (t + 1)
            owned = _tile(page, scene, t, 2)
            assert_colour(owned[:rows], PALETTE[0])
            assert_colour(owned[rows:], PALETTE[1])
            attended, other = _tile(page, scene, t, 3), _tile(page, scene, t, 4)
            assert_colour(attended[:rows], 0)
            assert_colour(attended[rows:], NEUTRAL)
            assert_colour(other[:, :34], NEUTRAL)  # of the map's 18 columns the last covers one pixel of the image
            assert_colour(other[:, 34], NEUTRAL / 2 if scene else NEUTRAL)
            drawn = _tile(page, scene, t, 5)
            assert_colour(drawn[:rows], (arrays["rgb"][t, scene, 0, 0, 0] + 1) / 2)
            assert_colour(drawn[rows:], NEUTRAL)
            assert_colour(_tile(page, scene, t, 6)[rows:], (arrays["rgb"][t, scene, 1, 0, 0] + 1) / 2)


def test_attention_is_drawn_relative_to_the_largest() -> None:
    np.testing.assert_array_equal(_picture(1)[0], _picture(0.01)[0])


def test_columns_and_rows_have_words() -> None:
    page, _ = _picture()
    side = SIZE * SCALE
    for row in range(2 * ITERS):
        top = MARGIN + HEADER + row * (side + GAP)
        assert (page[top : top + side, MARGIN : MARGIN + LABEL] < 128).any()
    for column, slot in enumerate((None, None, None, 0, 1, 0, 1)):
        groups = (column >= 3) + (column >= 3 + SLOTS)
        left = MARGIN + LABEL + column * (side + GAP) + groups * (GROUP_GAP - GAP)
        above = page[: MARGIN + HEADER, left : left + side]
        assert (above[: MARGIN + HEADER - 12] < 128).any()
        assert_colour(above[MARGIN + HEADER - 8] / 255, 1 if slot is None else PALETTE[slot])
