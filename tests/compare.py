"""Running a module and comparing what came out with what another computed: shared by the tests of the core."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Results = dict[str, Tensor]
# Where the kernels are tested: on a GPU where Triton's interpreter, which runs them on a CPU, is switched off.
DEVICE = "cuda" if os.environ.get("TRITON_INTERPRET") == "0" and torch.cuda.is_available() else "cpu"


def perturb(module: nn.Module, seed: int = 1, size: float = 0.3) -> nn.Module:
    """Move every parameter off its initial value, so that no bias is 0 and no LayerNorm weight 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p))
    return module


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """On DEVICE, the same numbers on all devices."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def results(
    module: nn.Module,
    inputs: Tensor,
    *,
    layout: Callable[[Tensor], Tensor] = lambda x: x,
    slots_init: Tensor | None = None,
    summed: bool = False,
    **call: Any,
) -> Results:
    """Outputs of `module(layout(inputs), ...)`, and the gradients to `inputs`, `slots_init` and every parameter.

    Incoming gradients are random, or ones expanded from a scalar if `summed`. A call without `slots_init` draws with a
    fixed seed.
    """
    wanted = {"inputs": inputs.detach().clone().requires_grad_()}
    if slots_init is None:
        torch.manual_seed(7)
    else:
        wanted["slots_init"] = call["slots_init"] = slots_init.detach().clone().requires_grad_()
    outputs = module(layout(wanted["inputs"]), **call)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted |= {name: p for name, p in module.named_parameters() if p.requires_grad}
    if summed:
        loss = sum(x.sum() for x in outputs)
    else:
        loss = sum((x * normal(*x.shape, seed=i, dtype=x.dtype)).sum() for i, x in enumerate(outputs))
    grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    named = {f"output {i}": x.detach() for i, x in enumerate(outputs)}
    return named | {f"gradient to {name}": grad for name, grad in zip(wanted, grads, strict=True)}


def assert_same(actual: Results, expected: Results, tolerance: float) -> None:
    """Equal to `tolerance`, relative to each tensor's largest entry plus a tenth of the largest of all.

    The second part is for gradients that are 0 in exact arithmetic, such as those of `to_q.bias` and `norm_slots.bias`.
    """
    assert actual.keys() == expected.keys()
    scale = max(largest(x) for x in expected.values())
    wrong = {}
    for name, want in expected.items():
        assert actual[name].shape == want.shape, name
        error = largest(actual[name].double() - want.double())
        if not error <= tolerance * (largest(want) + 0.1 * scale):  # also where either is NaN
            wrong[name] = f"off by {error:.2g} of {largest(want):.2g}"
    assert not wrong, wrong


def assert_error_at_most_twice(fast: Results, plain: Results, exact: Results, floor: float = 1e-6) -> None:
    """The error of each of `fast` is at most twice that of `plain`, plus `floor` times the largest entry of `exact`.

    In the maximum and in the root mean square. For what is 0 in exact arithmetic, such as the gradient of `to_q.bias`,
    the largest of all counts.
    """
    assert fast.keys() == exact.keys()
    scale = max(largest(x) for x in exact.values())
    for name, want in exact.items():
        assert fast[name].shape == want.shape, name
        size = largest(want) if largest(want) > 1e-9 * scale else scale
        for measure in (largest, rms):
            error, allowed = measure(fast[name] - want), 2 * measure(plain[name] - want) + floor * size
            assert error <= allowed, (name, measure.__name__, error, allowed)


def largest(x: Tensor) -> float:
    return x.detach().abs().max().item() if x.numel() else 0.0


def rms(x: Tensor) -> float:
    return x.detach().double().square().mean().sqrt().item() if x.numel() else 0.0
