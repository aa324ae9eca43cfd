"""One small call that launches every kernel once or more, for tools that watch a program, such as compute-sanitizer.

python -m benchmarks.gpu_once                       on a GPU
TRITON_INTERPRET=1 python -m benchmarks.gpu_once    on a CPU
"""

import sys
from collections import Counter

import torch

from .cost import WRITTEN, Shape, recorded, weights
from .gpu_measure import on_gpu

# Two splits of an image, of which the last block is not full; both masks.
SHAPE = Shape(B=2, N=300, D_in=64, K=5, D=64, T=2, dtype=torch.bfloat16, mask=True)


def launches(shape: Shape, device: str) -> Counter[str]:
    """How often each kernel was launched by a forward pass, one attention map and a backward pass."""
    from slotattn_fast import triton_backend

    torch.manual_seed(0)
    w, s = weights(shape, device)
    inputs = torch.randn(shape.B, shape.N, shape.D_in, device=device).to(shape.dtype)
    slots = torch.randn(shape.B, shape.K, shape.D, device=device)
    mask = torch.rand(shape.B, shape.N, device=device) > 0.3
    slot_mask = torch.rand(shape.B, shape.K, device=device) > 0.3
    with recorded(run=True) as plan:
        states, *kept = triton_backend.forward(inputs, slots, mask, slot_mask, w, s)
        triton_backend.attention_map(inputs, slots, mask, slot_mask, kept[0][0], w, s)
        d_states = torch.ones_like(states)
        triton_backend.backward(d_states, inputs, slots, mask, slot_mask, states, *kept, w, s, need_d_inputs=True)
    return Counter(launch.kernel for launch in plan.launches)


def main() -> None:
    device = "cuda" if on_gpu() else "cpu"
    for dtype in (torch.bfloat16, torch.float32):
        counts = launches(SHAPE._replace(dtype=dtype), device)
        print(dtype, dict(counts), flush=True)
        missing = sorted(set(WRITTEN) - set(counts))
        if missing:
            sys.exit(f"not launched: {', '.join(missing)}")
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
