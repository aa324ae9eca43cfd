"""The learning rate against the paper's formula and values worked out by hand."""

from dataclasses import replace

import pytest

from slotattn_fast.train.config import PRESETS
from slotattn_fast.train.schedule import learning_rate

PAPER = PRESETS["discovery"]["tetrominoes"]
COSINE = replace(PAPER, lr=1e-3, warmup_steps=0, decay="cosine", decay_steps=None, steps=900)


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
    assert learning_rate(step, PAPER) == pytest.approx(expected, rel=1e-12)


def test_no_warmup_starts_at_the_base_rate() -> None:
    assert learning_rate(0, replace(PAPER, warmup_steps=0)) == 4e-4


def test_no_decay_stays_at_the_base_rate() -> None:
    constant = replace(PAPER, decay="none", decay_steps=None)
    assert learning_rate(5_000, constant) == pytest.approx(2e-4)
    assert learning_rate(400_000, constant) == 4e-4


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (300, 0.75), (450, 0.5), (600, 0.25), (900, 0.0)])
def test_cosine(step: int, factor: float) -> None:
    assert learning_rate(step, COSINE) == pytest.approx(1e-3 * factor, abs=1e-15)


def test_cosine_after_a_warmup() -> None:
    assert learning_rate(300, replace(COSINE, warmup_steps=600)) == pytest.approx(0.5 * 0.75e-3)
