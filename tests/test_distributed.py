"""DistributedDataParallel: two processes with half of the batch each have the gradients of one with all of it."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from compare import assert_same, normal, perturb
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from slotattn_fast import SlotAttention

PROCESSES = 2
BACKENDS = ("torch", "triton")


def gradients(module: nn.Module, images: slice) -> dict[str, torch.Tensor]:
    """Of a mean over these of four images; the initial slots are given, as a draw would differ by process."""
    inputs, slots_init = (normal(4, n, 16, seed=n).float()[images] for n in (13, 3))
    module(inputs, slots_init=slots_init).square().mean().backward()
    named = module.named_parameters()
    return {name.removeprefix("module."): p.grad for name, p in named if p.grad is not None}


def made(backend: str) -> nn.Module:
    torch.manual_seed(0)
    return perturb(SlotAttention(3, 16, backend=backend))


def process(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    for backend in BACKENDS:
        # slots_mu and slots_logsigma, which only a draw uses, get no gradient
        module = DistributedDataParallel(made(backend), find_unused_parameters=True)
        found = gradients(module, slice(2 * rank, 2 * rank + 2))
        torch.save(found, folder / f"{backend}-{rank}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # All is saved. A thread of PyTorch's that outlives the interpreter can abort the process on its way out ("terminate
    # called without an active exception"), which says nothing about the gradients.
    os._exit(0)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
def test_gradients_are_the_average_of_the_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, (tmp_path,), PROCESSES)
    for backend in BACKENDS:
        expected = gradients(made(backend), slice(None))
        for rank in range(PROCESSES):
            found = torch.load(tmp_path / f"{backend}-{rank}")
            assert_same({name: found[name] for name in expected}, expected, 1e-5)
