"""Results that the paper reports and evaluations are set beside, in percent."""

from typing import NamedTuple


class Score(NamedTuple):
    """Over several seeds."""

    mean: float
    deviation: float | None = None
    """Standard deviation."""


FG_ARI = {
    "CLEVR6": {
        "Slot Attention": Score(98.8, 0.3),
        "Slot MLP": Score(60.4, 6.6),
        "IODINE": Score(98.8, 0.0),
        "MONet": Score(96.2, 0.6),
    },
    "Multi-dSprites": {
        "Slot Attention": Score(91.3, 0.3),
        "Slot MLP": Score(60.3, 1.8),
        "IODINE": Score(76.7, 5.6),
        "MONet": Score(90.4, 0.8),
    },
    "Tetrominoes": {
        "Slot Attention": Score(99.5, 0.2),
        "Slot MLP": Score(25.1, 34.3),
        "IODINE": Score(99.2, 0.4),
    },
}
"""By data set and model (Table 2), of 5 seeds; Slot Attention on Tetrominoes of 4, after one was left out."""

BINARIZED = {
    "Slot Attention": Score(69.4, 0.9),
    "IODINE": Score(64.8, 17.2),
    "R-NEM": Score(68.5, 1.7),
}
"""FG-ARI on binarized Multi-dSprites, with 4 slots (section 4.1)."""

SOFT_K_MEANS = Score(75.5, 3.8)
"""FG-ARI on CLEVR6 of the ablation at the end of Appendix B."""

AP = {
    "Slot Attention": (Score(94.3, 1.1), Score(86.7, 1.4), Score(56.0, 3.6), Score(10.8, 1.7), Score(0.9, 0.2)),
    "DSPN, T = 30": (Score(85.2, 4.8), Score(81.1, 5.2), Score(47.4, 17.6), Score(10.8, 9.0), Score(0.6, 0.7)),
    "Slot MLP": (Score(19.8, 1.6), Score(1.4, 0.3), Score(0.3, 0.2), Score(0.0), Score(0.0)),
}
"""On CLEVR10, at the distances inf, 1, 0.5, 0.25 and 0.125 (Figure 5, left). Unverified: quoted from memory, so say so
wherever they are shown."""

ATTENTION_ARI = Score(78.0, 2.9)
"""Of Slot Attention's attention on CLEVR10 with masks, at 32x32 (section 4.2)."""
