"""The learning rate against the paper's formula and values worked out by hand."""

import pytest

from slotattn_fast.train.schedule import learning_rate


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (1, 4e-4 / 10_000 * 0.5**1e-5),
        (5_000, 4e-4 * 0.5 * 0.5**0.05),
        (10_000, 4e-4 * 0.5**0.1),
        (100_000, 2e-4),
        (200_000, 1e-4),
        (500_000, 4e-4 / 32),
    ],
)
def test_paper_schedule(step: int, expected: float) -> None:
    rate = learning_rate(step, base=4e-4, warmup_steps=10_000, decay_steps=100_000, steps=500_000)
    assert rate == pytest.approx(expected, rel=1e-12)


def test_no_warmup_starts_at_the_base_rate() -> None:
    assert learning_rate(0, base=1e-3, warmup_steps=0, decay_steps=10, steps=20) == 1e-3


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (300, 0.75), (450, 0.5), (600, 0.25), (900, 0.0)])
def test_cosine(step: int, factor: float) -> None:
    rate = learning_rate(step, base=1e-3, warmup_steps=0, decay_steps=None, steps=900)
    assert rate == pytest.approx(1e-3 * factor, abs=1e-15)


def test_cosine_after_a_warmup() -> None:
    rate = learning_rate(300, base=1e-3, warmup_steps=600, decay_steps=None, steps=900)
    assert rate == pytest.approx(0.5 * 0.75e-3)
