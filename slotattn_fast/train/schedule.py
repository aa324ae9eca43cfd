"""The learning rate of the paper's training (section 4): linear warm-up times continuous exponential decay."""


def learning_rate(step: int, *, base: float, warmup_steps: int, decay_steps: int) -> float:
    """`base * min(1, step / warmup_steps) * 0.5 ** (step / decay_steps)`, with steps counted from 0.

    Step 0 therefore trains at rate 0 whenever there is a warm-up, as in the authors' released code; `warmup_steps = 0`
    means none. The decay halves the rate every `decay_steps` steps, continuously and from step 0 on.
    """
    warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return base * warmup * 0.5 ** (step / decay_steps)
