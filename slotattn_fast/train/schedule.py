"""The learning rate: the paper's (section 4), linear warm-up times exponential decay, or a cosine in place of that."""

import math


def learning_rate(step: int, *, base: float, warmup_steps: int, decay_steps: int | None, steps: int) -> float:
    """`base * min(1, step / warmup_steps) * 0.5 ** (step / decay_steps)`, with steps counted from 0.

    Step 0 therefore trains at rate 0 whenever there is a warm-up, as in the authors' released code; `warmup_steps = 0`
    means none. The decay halves the rate every `decay_steps` steps, continuously and from step 0 on. Without it, the
    last factor is half a cosine, 1 at step 0 and 0 at `steps` (Loshchilov and Hutter, 2017, equation 5).
    """
    warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    decay = (1 + math.cos(math.pi * step / steps)) / 2 if decay_steps is None else 0.5 ** (step / decay_steps)
    return base * warmup * decay
