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
    rate = learning_rate(step, base=4e-4, warmup_steps=10_000, decay_steps=100_000)
    assert rate == pytest.approx(expected, rel=1e-12)


def test_no_warmup_starts_at_the_base_rate() -> None:
    assert learning_rate(0, base=1e-3, warmup_steps=0, decay_steps=10) == 1e-3
