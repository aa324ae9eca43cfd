"""Small calls that launch every kernel once or more, for tools that watch a program, such as compute-sanitizer.

python -m benchmarks.gpu_once                       on a GPU
TRITON_INTERPRET=1 python -m benchmarks.gpu_once    on a CPU
"""

import sys
from collections import Counter

import torch

from .cost import WRITTEN, Shape, call, decoder_maps, mixture_plans, recorded
from .measure import on_gpu

# Two splits of an image, of which the last block is not full; both masks.
ON_CHIP = "on_chip_fwd_kernel"  # Hopper alone
SHAPE = Shape(B=2, N=300, D_in=64, K=5, D=64, T=2, dtype=torch.bfloat16, mask=True)
DECODER = (2, 5, 3, 35)  # B, K, C, side
MATCHED = ((2, 5, 10), (1, 9, 40))  # B, rows, columns: a column a thread, and two


def launches(shape: Shape, device: str) -> Counter[str]:
    """How often each kernel was launched by a forward pass, one attention map and a backward pass."""
    from slotattn_fast import SlotAttention

    torch.manual_seed(0)
    B, N, D_in, K, D, T, dtype, _ = shape
    module = SlotAttention(K, D, T, input_dim=D_in, backend="triton").to(device, dtype)
    inputs = torch.randn(B, N, D_in, device=device).to(dtype).requires_grad_()
    mask, slot_mask = (torch.rand(B, size, device=device) > 0.3 for size in (N, K))
    with recorded(run=True) as plan, torch.enable_grad():
        slots, _ = module(inputs, mask=mask, slot_mask=slot_mask, return_attn=True)
        slots.sum().backward()
    return Counter(launch.kernel for launch in plan.launches)


def launches_on_chip(shape: Shape, device: str) -> Counter[str]:
    """The same for a forward pass that holds an image on the chip, an order that no call takes by itself yet."""
    from slotattn_fast.kernels.launch import CallConfig

    from slotattn_fast import triton_backend
    from slotattn_fast.slot_update import fold

    torch.manual_seed(0)
    params, s = call(shape, device)
    inputs = torch.randn(shape.B, shape.N, shape.D_in, device=device).to(shape.dtype)
    slots = torch.randn(shape.B, shape.K, shape.D, device=device)
    mask, slot_mask = (torch.rand(shape.B, size, device=device) > 0.3 for size in (shape.N, shape.K))
    w = fold(params, slots, 1, shape.D**-0.5)
    with recorded(run=True) as plan:
        triton_backend.forward(inputs, slots, mask, slot_mask, w, s, CallConfig(shape.B, on_chip=True))
    return Counter(launch.kernel for launch in plan.launches)


def mixture_launches(dtype: torch.dtype, device: str) -> Counter[str]:
    """The same for the decoder's end: maps whose channels are moved together, cropped ones, and planes."""
    maps, images = decoder_maps(*DECODER, dtype, device)
    found: Counter[str] = Counter()
    for x, y in ((maps, images), (maps[..., :-2, :-2], images[..., :-2, :-2]), (maps.contiguous(), images)):
        for plan in mixture_plans(x, y, run=True):
            found.update(launch.kernel for launch in plan.launches)
    return found


def matching_launches(dtype: torch.dtype, device: str) -> Counter[str]:
    """The same for the matching."""
    from slotattn_fast.kernels.matching_ops import match

    with recorded(run=True) as plan:
        for shape in MATCHED:
            match(torch.rand(shape, device=device).to(dtype))
    return Counter(launch.kernel for launch in plan.launches)


def main() -> None:
    from slotattn_fast.kernels.device import hopper

    device = "cuda" if on_gpu() else "cpu"
    for dtype in (torch.bfloat16, torch.float32):
        counts = launches(SHAPE._replace(dtype=dtype), device)
        counts += mixture_launches(dtype, device) + matching_launches(dtype, device)
        print(dtype, dict(counts), flush=True)
        missing = sorted(set(WRITTEN) - set(counts) - {ON_CHIP})
        if missing:
            sys.exit(f"not launched: {', '.join(missing)}")
    if hopper(torch.device(device)):
        print(dict(launches_on_chip(SHAPE, device)), flush=True)
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
