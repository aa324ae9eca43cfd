"""Results that the paper reports and evaluations are set beside, in percent."""

from typing import NamedTuple


class Score(NamedTuple):
    """Over several seeds."""

    mean: float
    deviation: float | None = None
    """Standard deviation."""


AP = {
    "Slot Attention": (Score(94.3, 1.1), Score(86.7, 1.4), Score(56.0, 3.6), Score(10.8, 1.7), Score(0.9, 0.2)),
    "DSPN, T = 30": (Score(85.2, 4.8), Score(81.1, 5.2), Score(47.4, 17.6), Score(10.8, 9.0), Score(0.6, 0.7)),
    "Slot MLP": (Score(19.8, 1.6), Score(1.4, 0.3), Score(0.3, 0.2), Score(0.0), Score(0.0)),
}
"""On CLEVR10, at the distances inf, 1, 0.5, 0.25 and 0.125 (Figure 5, left). Unverified: quoted from memory, so say so
wherever they are shown."""

ATTENTION_ARI = Score(78.0, 2.9)
"""Of Slot Attention's attention on CLEVR10 with masks, at 32x32 (section 4.2)."""
