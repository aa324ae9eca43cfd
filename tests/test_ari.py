import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from slotattn_fast.metrics.ari import fg_ari


def oracle(pred: torch.Tensor, true: torch.Tensor, background: int = 0) -> float:
    kept = true != background
    return adjusted_rand_score(true[kept].numpy(), pred[kept].numpy())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    pixels=st.integers(1, 80),
    objects=st.integers(1, 6),
    slots=st.integers(1, 8),
    background=st.integers(0, 2),
)
def test_equals_scikit_learn_on_the_foreground(seed, pixels, objects, slots, background):
    rng = np.random.default_rng(seed)
    true = torch.from_numpy(rng.integers(0, objects + 1, (5, pixels)))
    # Half of the pixels follow the objects, so that all scores occur.
    pred = torch.where(torch.from_numpy(rng.random((5, pixels)) < 0.5), true, 0) % slots
    pred = torch.where(
        torch.from_numpy(rng.random((5, pixels)) < 0.5), pred, torch.from_numpy(rng.integers(0, slots, (5, pixels)))
    )
    true[:, 0] = background + 1  # some foreground in every image
    scores = fg_ari(pred, true, background=background)
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx(
        [oracle(p, t, background) for p, t in zip(pred, true, strict=True)], abs=1e-12
    )


def test_pixels_that_do_not_fit_into_float32():
    rng = np.random.default_rng(0)
    true = torch.from_numpy(rng.integers(0, 4, (1, 128, 128)))
    pred = torch.where(torch.from_numpy(rng.random(true.shape) < 0.01), 4, true)
    assert fg_ari(pred, true).item() == pytest.approx(oracle(pred.flatten(), true.flatten()), abs=1e-13)


def test_images_do_not_mix():
    true = torch.tensor([[1, 1, 2, 2], [1, 2, 1, 2], [0, 0, 0, 0]])
    pred = torch.tensor([[5, 5, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3]])
    scores = fg_ari(pred, true)
    assert scores[0] == 1
    assert scores[1].item() == pytest.approx(-0.5) == oracle(pred[1], true[1])
    assert scores[2].isnan()


@pytest.mark.parametrize(
    ("pred", "true", "score"),
    [
        pytest.param([3, 3, 3, 0], [1, 1, 1, 0], 1.0, id="one object, one segment"),
        pytest.param([0, 1, 1, 0], [1, 1, 1, 0], 0.0, id="one object, two segments"),
        pytest.param([0, 1, 2, 3], [1, 2, 3, 4], 1.0, id="single pixels"),
        pytest.param([7, 1, 2, 3], [1, 0, 0, 0], 1.0, id="one foreground pixel"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64])
def test_degenerate_images(pred, true, score, dtype):
    assert fg_ari(torch.tensor([pred], dtype=dtype), torch.tensor([true], dtype=dtype)).tolist() == [score]


def test_one_large_object_scores_exactly_1():
    true = torch.ones(1, 128 * 128, dtype=torch.long)
    assert fg_ari(true * 2, true).item() == 1


def test_no_images_and_no_pixels():
    assert fg_ari(torch.empty(0, 9, dtype=torch.long), torch.empty(0, 9, dtype=torch.long)).shape == (0,)
    assert fg_ari(torch.empty(2, 0, dtype=torch.long), torch.empty(2, 0, dtype=torch.long)).isnan().all()


@pytest.mark.parametrize(
    ("pred", "true", "error", "says"),
    [
        (torch.zeros(2, 4), torch.ones(2, 4).long(), TypeError, r"pred_labels: got torch.float32.*argmax"),
        (torch.zeros(2, 4).long(), torch.ones(2, 4).bool(), TypeError, r"true_labels: got torch.bool"),
        (torch.zeros(2, 4).long(), torch.ones(2, 5).long(), ValueError, r"same shape.*\(2, 4\) and \(2, 5\)"),
        (torch.zeros(4).long(), torch.ones(4).long(), ValueError, r"at least one dimension of pixels"),
        (torch.full((2, 4), -1), torch.ones(2, 4).long(), ValueError, r"pred_labels: got -1"),
        (torch.zeros(2, 4).long(), torch.full((2, 4), -2), ValueError, r"true_labels: got -2"),
        (torch.zeros(2, 4).long(), torch.ones(2, 4, device="meta").long(), ValueError, r"one device, got cpu and meta"),
    ],
)
def test_bad_labels(pred, true, error, says):
    with pytest.raises(error, match=says):
        fg_ari(pred, true)
