"""The learning rate: the paper's (Appendix E.6), linear warm-up times exponential decay, and what may replace it."""

import math

from slotattn_fast.train.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Of a step, counted from 0: `lr * min(1, step / warmup_steps)` times the decay of the configuration.

    Step 0 therefore trains at rate 0 whenever there is a warm-up, as in the authors' released code; `warmup_steps = 0`
    means none. The exponential decay, 0.5 ** (step / decay_steps), is continuous and runs from step 0 on. The cosine is
    1 at step 0 and would be 0 at the step after the last (Loshchilov and Hutter, 2017, equation 5).
    """
    warmup = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    decay = 1.0
    if config.decay == "cosine":
        decay = (1 + math.cos(math.pi * step / config.steps)) / 2
    elif config.decay_steps is not None:
        decay = 0.5 ** (step / config.decay_steps)
    return config.lr * warmup * decay
