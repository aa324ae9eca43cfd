"""Who is compared in one SlotAttention call: all with the same weights, inputs and initial slots, on a GPU or a CPU.

triton            ours by its Triton kernels, on a GPU
triton, graph     the same in a captured CUDA graph
triton, compiled  the same under torch.compile's mode "reduce-overhead": CUDA graphs, and copies into them
torch             ours by its PyTorch backend
reference         `slotattn_fast.reference`, plain PyTorch, run eagerly
compiled          the reference under torch.compile
max-autotune      the reference under torch.compile's mode of that name, on a GPU with CUDA graphs
slot-attention    the PyPI package, which draws its initial slots itself: in its first call those of the others
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .cost import Shape
from .measure import WARM_UP, Call, captured, on_gpu
from .reasons import NOT_MEASURED, failed, too_wrong

OURS = ("triton", "triton, graph", "triton, compiled", "torch")
NAMES = (*OURS, "reference", "compiled", "max-autotune", "slot-attention")
PASSES = ("forward", "forward+backward")
_DRAW = 1  # seed of the initial slots


def label(name: str) -> str:
    """As tables and plots call it."""
    return f"ours: {name}" if name in OURS else name


class Unavailable(Exception):
    """A contender that cannot take part here; the message says why."""


class Problem(NamedTuple):
    """What all contenders are given."""

    plain: nn.Module
    """The reference, whose weights all have."""
    inputs: Tensor
    slots: Tensor
    """The initial ones."""
    which: str
    """One of PASSES."""

    @property
    def device(self) -> torch.device:
        return self.inputs.device


def problem(shape: Shape, which: str) -> Problem:
    """Parameters and inputs of the shape's dtype, without autocast."""
    from slotattn_fast.reference import SlotAttention as Reference

    device = "cuda" if on_gpu() else "cpu"
    torch.compiler.reset()
    torch.manual_seed(0)
    plain = Reference(shape.K, shape.D, shape.T, input_dim=shape.D_in).to(device, shape.dtype)
    inputs = torch.randn(shape.B, shape.N, shape.D_in, device=device).to(shape.dtype).requires_grad_()
    torch.manual_seed(_DRAW)
    return Problem(plain, inputs, plain.initial_slots(inputs, shape.K).detach(), which)


def make(name: str, of: Problem) -> Call:
    """The call of a contender. Raises `Unavailable`."""
    if name in ("triton", "triton, graph", "triton, compiled"):
        if not on_gpu() and os.environ.get("TRITON_INTERPRET") != "1":
            raise Unavailable("no GPU")
        if find_spec("triton") is None:
            raise Unavailable("Triton is not installed")
        module = ours(of.plain, "triton")
        if "compiled" in name:
            return _recorded(_call(torch.compile(module, mode="reduce-overhead"), of))
        call = _call(module, of)
        return captured(call) if "graph" in name else call
    if name == "torch":
        return _call(ours(of.plain, "torch"), of)
    if name == "reference":
        return _call(of.plain, of)
    if name == "compiled":
        return _call(torch.compile(of.plain), of)
    if name == "max-autotune":
        return _recorded(_call(torch.compile(of.plain, mode=name), of))
    if find_spec("slot_attention") is None:
        raise Unavailable("the package slot-attention is not installed")
    return peer(of)


def _call(module: nn.Module, of: Problem) -> Call:
    return partial(step, module, of.inputs, {"slots_init": of.slots}, of.which)


def _recorded(call: Call) -> Call:
    """As it is timed: the compiler's CUDA graphs are recorded in the second call and replayed from the third on."""
    for _ in range(WARM_UP):
        call()
    return call


def ours(plain: nn.Module, backend: str) -> nn.Module:
    """Our module, of the weights, dtype and device of the reference."""
    from slotattn_fast import SlotAttention

    made = SlotAttention(plain.num_slots, plain.dim, plain.iters, backend=backend, input_dim=plain.input_dim)
    return alike(made, plain)


def peer(of: Problem) -> Call:
    from slot_attention import SlotAttention as Peer

    module = alike(Peer(of.plain.num_slots, of.plain.dim, of.plain.iters), of.plain)
    torch.manual_seed(_DRAW)
    return partial(step, module, of.inputs, {}, of.which)


def alike(module: nn.Module, plain: nn.Module) -> nn.Module:
    parameter = next(plain.parameters())
    module.to(parameter.device, parameter.dtype).load_state_dict(plain.state_dict())
    return module


def step(module: nn.Module, inputs: Tensor, given: dict[str, Tensor], which: str) -> list[Tensor]:
    """The slots; in "forward+backward" also the gradients to the inputs and the parameters of the iterations."""
    if on_gpu():
        torch.compiler.cudagraph_mark_step_begin()  # what a compiled module returned before may be overwritten
    if which == "forward":
        with torch.no_grad():
            return [module(inputs, **given)]
    slots = module(inputs, **given)
    return [slots.detach(), *torch.autograd.grad(slots, [inputs, *parameters(module)], torch.ones_like(slots))]


def parameters(module: nn.Module) -> list[Tensor]:
    """Those of the iterations, in the order of their names: not those that the initial slots are drawn with."""
    named = sorted((name.removeprefix("_orig_mod."), p) for name, p in module.named_parameters())
    return [p for name, p in named if not name.startswith("slots_")]


def exact_results(of: Problem) -> list[Tensor]:
    """Of the reference in float64, from the same numbers."""
    from slotattn_fast.reference import SlotAttention as Reference

    plain = of.plain
    exact = Reference(plain.num_slots, plain.dim, plain.iters, input_dim=plain.input_dim)
    exact.to(of.device, torch.float64).load_state_dict(plain.state_dict())
    return step(exact, of.inputs.detach().double().requires_grad_(), {"slots_init": of.slots.double()}, of.which)


def difference(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """|found - exact| / |exact|: the largest of slots, gradient to the inputs and gradient to all parameters."""
    errors = []
    for group in (slice(0, 1), slice(1, 2), slice(2, None))[: min(len(exact), 3)]:
        actual, wanted = (torch.cat([x.double().flatten() for x in side[group]]) for side in (found, exact))
        errors.append((actual - wanted).norm() / wanted.norm())
    return torch.stack(errors).max().item()  # NaN where any is


def agreeing(of: Problem, makers: Mapping[str, Callable[[], Call]]) -> tuple[dict[str, Call], list[dict[str, Any]]]:
    """The calls of those that agree with the reference in float64, and a row for each: its error, or why it is not.

    At most twice the error of "reference" in the same dtype, which is made first, plus 1e-5. A contender that fails is
    no reason to lose the others.
    """
    exact, limit = exact_results(of), None
    calls, rows = {}, []
    for name, maker in sorted(makers.items(), key=lambda item: item[0] != "reference"):
        row: dict[str, Any] = {"contender": name}
        rows.append(row)
        try:
            call = maker()
            error = row["error"] = difference(call(), exact)
        except Unavailable as reason:
            row[NOT_MEASURED] = str(reason)
            continue
        except Exception as failure:
            row[NOT_MEASURED] = failed(failure)
            continue
        if name == "reference":
            limit = 2 * error + 1e-5
        if why := too_wrong(error, limit, "the reference"):
            row[NOT_MEASURED] = why
        else:
            calls[name] = call
    return calls, rows
