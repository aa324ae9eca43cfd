"""A side of benchmarks/against.py: for every line on its input it calls the module once and prints the milliseconds.

    python -P benchmarks/against_worker.py '[B, N, K, "forward" or "forward+backward", threads]'

It imports the package that PYTHONPATH leads to and nothing else of this repository, as the package may be of another
revision. First it prints which package that is, and sums of what a call returns, to compare with the other side's.
"""

import json
import sys
import time

import torch

import slotattn_fast
from slotattn_fast import SlotAttention

DIM = 64


def main() -> None:
    B, N, K, which, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    module = SlotAttention(K, DIM).to(device, dtype)
    inputs = torch.randn(B, N, DIM).to(device, dtype).requires_grad_()
    slots = torch.randn(B, K, DIM).to(device, dtype)

    def call() -> list[torch.Tensor]:
        with torch.set_grad_enabled(which != "forward"):
            found = module(inputs, slots_init=slots)
        if which == "forward":
            return [found]
        used = [p for name, p in module.named_parameters() if not name.startswith("slots_")]
        return [found.detach(), *torch.autograd.grad(found, [inputs, *used], torch.ones_like(found))]

    sums = [x.double().abs().sum().item() for x in call()]
    print(json.dumps([slotattn_fast.__file__, sums]), flush=True)
    for _ in sys.stdin:
        if gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if gpu:
            torch.cuda.synchronize()
        print(1e3 * (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
