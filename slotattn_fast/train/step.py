"""One training step: forward, backward, Adam. Launched kernel by kernel, or replayed as one CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

Batch = dict[str, Tensor]
Step = Callable[[Batch], Tensor]

_WARMUP_STEPS = 3
"""Before a capture: libraries choose their algorithms, and Adam makes its moments, outside of the graph."""


def make_adam(model: nn.Module, lr: float, *, capturable: bool) -> torch.optim.Adam:
    """The paper's optimiser (section 4.1): Adam without weight decay. `capturable`: its rate lives on the device."""
    learned = [p for p in model.parameters() if p.requires_grad]
    rate = torch.tensor(lr, device=learned[0].device) if capturable else lr
    return torch.optim.Adam(learned, lr=rate, betas=(0.9, 0.999), eps=1e-8, fused=True, capturable=capturable)


def restore_adam(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads Adam's moments and counts; its settings stay those that it was made with."""
    here = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    groups = [{**saved, **ours} for saved, ours in zip(state["param_groups"], here, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """In place where a graph reads it, without waiting for the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def eager_step(fabric: Fabric, loss_of: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """A function of a batch that takes one step and returns the loss before it, on the device."""

    def step(batch: Batch) -> Tensor:
        loss: Tensor = loss_of(batch)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def graphed_step(fabric: Fabric, loss_of: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> Step:
    """The same as one CUDA graph, for batches with the shapes of `batch`. Weights and moments are as before."""
    eager = eager_step(fabric, loss_of, optimizer)
    static = {name: value.clone() for name, value in batch.items()}
    weights = [(p, p.detach().clone()) for p in loss_of.parameters()]
    moments = [
        (p, {name: value.clone() for name, value in state.items()}) for p, state in optimizer.state.items() if state
    ]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARMUP_STEPS):
            eager(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # The thread that reads batches ahead may allocate meanwhile, which concerns the capture of its own thread only.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        static_loss = eager(static)

    # The graph reads and writes these very tensors, so they are set back in place.
    with torch.no_grad():
        for p, weight in weights:
            p.copy_(weight)
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
        for of, state in moments:
            for name, value in state.items():
                optimizer.state[of][name].copy_(value)

    def step(batch: Batch) -> Tensor:
        for name, value in batch.items():
            static[name].copy_(value, non_blocking=True)
        graph.replay()
        return static_loss.clone()

    return step
