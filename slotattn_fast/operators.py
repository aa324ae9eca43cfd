"""Both backends as operators, so that torch.compile, torch.export and autograd take each as one piece.

A backend is a module with `forward_outputs`, `forward` and `backward`: `torch_backend` or `triton_backend`. What its
forward pass returns besides the slots is kept for its backward pass.

PyTorch takes longer to dispatch an operator that is written in Python than a backend takes to launch an iteration's
kernels. So where no compiler or dispatch mode has to see the operator, its functions are called directly (`_direct`).
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from . import slot_update
from .kernels.arguments import Projections, Settings, Weights
from .kernels.device import on_its_device
from .kernels.launch import update_serves
from .torch_backend import attention_maps, composite
from .validation import autocast_enabled

KEPT = {"torch": ("sums",), "triton": ("sums", "queries", "stats")}

_TENSORS = "Tensor inputs, Tensor slots, Tensor? mask, Tensor? slot_mask, "
_ARGUMENTS = ", ".join(f"Tensor? {name}" for name in Weights._fields) + (
    ", int iters, int heads, float eps, float norm_eps, str aggregation, str eps_in, bool norm_inputs"
)


def run(
    backend: str, inputs: Tensor, slots: Tensor, mask: Tensor | None, slot_mask: Tensor | None, w: Weights, s: Settings
) -> tuple[Tensor, Tensor]:
    """The slots after every iteration [T, B, K, D], and E [T, B, h, K, D_in + 1], which gets no gradient.

    Both are in the precision of the computation and kept for the backward pass, so users must get copies.
    Differentiable, a second time by `composite`.
    """
    if _direct(inputs, slots, w.query):
        forward = _FUNCTIONS[backend].apply
    else:
        forward = getattr(torch.ops.slotattn_fast, f"{backend}_forward")
    states, sums, *_ = forward(inputs, slots, mask, slot_mask, *w, *s)
    return states, sums


def attention_map(
    backend: str,
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    sums: Tensor,
    w: Weights,
    s: Settings,
    attn_over: str,
) -> Tensor:
    """The attention [B, h, K, N] of the iteration that starts from `slots` and gives E, `sums`; differentiable."""
    if backend == "torch":
        return attention_maps(inputs, slots, mask, slot_mask, w, s, "slots", attn_over)
    return torch.ops.slotattn_fast.triton_map(inputs, slots, mask, slot_mask, sums, *w, *s, attn_over)


def absorb(p: Projections, heads: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """`slot_update.absorb` by a kernel, where the kernels over the slots serve these widths; differentiable, twice."""
    if p.after is None or not update_serves(p.to_q.shape[1], p.to_k.shape[1], None, heads):
        return slot_update.absorb(p, heads, scale)
    take = _Absorb.apply if _direct(p.to_q) else torch.ops.slotattn_fast.triton_absorb
    return take(*p, heads, scale)


def _direct(*tensors: Tensor) -> bool:
    """Whether nobody has to see an operator: no compiler, no dispatch mode, and tensors of PyTorch's with data."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return all((type(x) is Tensor or type(x) is Parameter) and not x.is_meta for x in tensors)


def _weights_and_settings(arguments: tuple[Any, ...]) -> tuple[Weights, Settings]:
    return Weights(*arguments[: len(Weights._fields)]), Settings(*arguments[len(Weights._fields) :])


@cache
def _module(name: str) -> ModuleType:
    return import_module(f".{name}", __package__)  # on demand: not everyone has Triton


def _register(backend: str, kept: tuple[str, ...]) -> type[Function]:
    """Defines slotattn_fast::<backend>_forward and _backward; returns an autograd Function that does without them.

    `_backward` returns the gradients to the inputs (empty if not needed), the initial slots and every weight there is.
    """
    outputs = ", ".join(f"Tensor {name}" for name in ("states", *kept))
    forward_name, backward_name = (f"slotattn_fast::{backend}_{which}" for which in ("forward", "backward"))
    torch.library.define(forward_name, f"({_TENSORS}{_ARGUMENTS}) -> ({outputs})")
    torch.library.define(
        backward_name, f"(Tensor d_states, {_TENSORS}{outputs}, {_ARGUMENTS}, bool need_d_inputs) -> Tensor[]"
    )
    num_saved = 4 + 1 + len(kept)  # inputs, slots, both masks, states and what else is kept

    @on_its_device
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return _module(f"{backend}_backend").forward(*arguments[:4], *_weights_and_settings(arguments[4:]))

    @torch.library.register_fake(forward_name)
    def forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        return _module(f"{backend}_backend").forward_outputs(*arguments[:2], *_weights_and_settings(arguments[4:]))

    @on_its_device
    def backward(d_states: Tensor, *arguments: Any) -> list[Tensor]:
        inputs, saved, (w, s) = arguments[0], arguments[:num_saved], _weights_and_settings(arguments[num_saved:-1])
        # A backward pass may be run under autocast, which must not reach the arithmetic here.
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            d_inputs, d_slots, d_weights = _module(f"{backend}_backend").backward(
                d_states, *saved, w, s, need_d_inputs=arguments[-1]
            )
        d_inputs = inputs.new_empty(0) if d_inputs is None else d_inputs
        return [d_inputs, d_slots, *(d for d in d_weights if d is not None)]

    @torch.library.register_fake(backward_name)
    def backward_fake(d_states: Tensor, *arguments: Any) -> list[Tensor]:
        (inputs, slots), (w, _) = arguments[:2], _weights_and_settings(arguments[num_saved:-1])
        d_inputs = inputs.new_empty(inputs.shape if arguments[-1] else 0)
        return [d_inputs, *(x.new_empty(x.shape) for x in (slots, *w) if x is not None)]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        w, ctx.s = _weights_and_settings(inputs[4:])
        ctx.save_for_backward(*inputs[:4], *output, *w)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # no zeros in the place of what has no gradient

    def differentiate(ctx: Any, d_states: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if d_states is None:
            return (None,) * len(ctx.needs_input_grad)
        every = ctx.saved_tensors  # once: under torch.utils.checkpoint, a second time would be an error
        saved, weights = every[:num_saved], every[num_saved:]
        tensors = (*saved[:2], *weights)
        needs = (*ctx.needs_input_grad[:2], *ctx.needs_input_grad[4 : 4 + len(weights)])
        if composite_is_due(d_states):
            mask, slot_mask = saved[2:4]

            def again(inputs: Tensor, slots: Tensor, *weights: Tensor) -> tuple[Tensor]:
                return (composite(inputs, slots, mask, slot_mask, Weights(*weights), ctx.s),)

            grads = gradients_of(again, tensors, needs, (d_states,), torch.is_grad_enabled())
        else:
            operator = getattr(torch.ops.slotattn_fast, f"{backend}_backward")
            take = backward if _direct(d_states, *saved[:2]) else operator
            outputs = take(d_states, *saved, *weights, *ctx.s, needs[0])
            grads = _placed(outputs, tensors, needs)
        return *grads[:2], None, None, *grads[2:], *[None] * len(ctx.s)

    torch.library.impl(forward_name, "CompositeExplicitAutograd", forward)
    torch.library.impl(backward_name, "CompositeExplicitAutograd", lambda *given: _apart(backward(*given)))
    torch.library.register_autograd(forward_name, differentiate, setup_context=setup_context)
    return _function("SlotAttention", forward, setup_context, differentiate)


# `setup_context` is called by hand, as PyTorch binds the arguments of a Function that has one by their names, slowly.
def _function(
    name: str, forward: Callable[..., Any], setup_context: Callable[..., Any], backward: Callable[..., Any]
) -> Any:
    def forward_and_setup(ctx: Any, *inputs: Any) -> Any:
        output = forward(*inputs)
        setup_context(ctx, inputs, output)
        return output

    parts = {"forward": staticmethod(forward_and_setup), "backward": staticmethod(backward)}
    return type(name, (Function,), parts)


def _apart(grads: list[Tensor]) -> list[Tensor]:
    """Copies, in one launch, of those that are views of more: the outputs of an operator must not share memory."""
    views = [i for i, x in enumerate(grads) if x.untyped_storage().nbytes() > x.nbytes]
    if views:
        shared, copies = [grads[i] for i in views], [torch.empty_like(grads[i]) for i in views]
        torch._foreach_copy_(copies, shared)
        for i, copy in zip(views, copies, strict=True):
            grads[i] = copy
    return grads


def gradients_of(
    composite: Callable[..., tuple[Tensor, ...]],
    tensors: tuple[Any, ...],
    needs: tuple[bool, ...],
    d_outputs: tuple[Tensor, ...],
    create_graph: bool,
) -> list[Tensor | None]:
    """The gradients of `composite(*tensors)` to those tensors that need one, by running it under autograd."""
    # As in a call, autocast must not reach the arithmetic here.
    given = d_outputs[0]
    with torch.autocast(given.device.type, enabled=False) if autocast_enabled(given) else nullcontext():
        with torch.enable_grad():
            # Aliases, so that no path leads from one of the tensors to another by the graph that made it.
            tensors = tuple(None if x is None else x.view_as(x) for x in tensors)
            outputs = composite(*tensors)
        wanted = [x for x, need in zip(tensors, needs, strict=True) if need]
        pairs = [(x, d) for x, d in zip(outputs, d_outputs, strict=True) if x.requires_grad]
        if not pairs:  # after no iteration at all
            return [None] * len(needs)
        outputs, d_outputs = zip(*pairs, strict=True)
        grads = iter(torch.autograd.grad(outputs, wanted, d_outputs, create_graph=create_graph, allow_unused=True))
    return [next(grads) if need else None for need in needs]


def _placed(grads: list[Tensor], tensors: tuple[Any, ...], needs: tuple[bool, ...]) -> list[Tensor | None]:
    """What a backward operator returns, a gradient for each tensor that there is, in place; None if not needed."""
    there = iter(grads)
    every = [None if x is None else next(there) for x in tensors]
    return [grad if need else None for grad, need in zip(every, needs, strict=True)]


def composite_is_due(d_output: Tensor) -> bool:
    """Whether a backward pass is to be differentiable itself, or batched (is_grads_batched=True)."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(d_output)


_FUNCTIONS = {backend: _register(backend, kept) for backend, kept in KEPT.items()}


# The kernels' attention maps; their gradient, which hardly anyone asks for, is that of the torch backend's.

torch.library.define("slotattn_fast::triton_map", f"({_TENSORS}Tensor sums, {_ARGUMENTS}, str attn_over) -> Tensor")


@torch.library.impl("slotattn_fast::triton_map", "CompositeExplicitAutograd")
@on_its_device
def _map(*arguments: Any) -> Tensor:
    *tensors, sums = arguments[:5]
    with torch.no_grad():
        return _module("triton_backend").attention_map(
            *tensors, sums if arguments[-1] == "inputs" else None, *_weights_and_settings(arguments[5:-1])
        )


@torch.library.register_fake("slotattn_fast::triton_map")
def _map_fake(inputs: Tensor, slots: Tensor, *arguments: Any) -> Tensor:
    _, s = _weights_and_settings(arguments[3:-1])
    return slots.new_empty(len(slots), s.heads, slots.shape[1], inputs.shape[1])


def _map_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    w, ctx.s = _weights_and_settings(inputs[5:-1])
    ctx.attn_over = inputs[-1]
    ctx.save_for_backward(*inputs[:4], *w)


def _map_differentiate(ctx: Any, d_map: Tensor) -> tuple[Tensor | None, ...]:
    inputs, slots, mask, slot_mask, *weights = ctx.saved_tensors
    needs = (*ctx.needs_input_grad[:2], *ctx.needs_input_grad[5 : 5 + len(weights)])

    def again(inputs: Tensor, slots: Tensor, *weights: Tensor) -> tuple[Tensor]:
        return (attention_maps(inputs, slots, mask, slot_mask, Weights(*weights), ctx.s, "slots", ctx.attn_over),)

    grads = gradients_of(again, (inputs, slots, *weights), needs, (d_map,), torch.is_grad_enabled())
    return *grads[:2], None, None, None, *grads[2:], *[None] * len(ctx.s), None


torch.library.register_autograd("slotattn_fast::triton_map", _map_differentiate, setup_context=_map_setup_context)


# The absorbed projections by a kernel. What it returns is only used by the operators above.

_PROJECTIONS = ", ".join(f"Tensor? {name}" for name in Projections._fields) + ", int heads, float scale"
torch.library.define("slotattn_fast::triton_absorb", f"({_PROJECTIONS}) -> (Tensor, Tensor, Tensor)")
torch.library.define(
    "slotattn_fast::triton_absorb_backward",
    f"(Tensor d_query, Tensor d_query_bias, Tensor d_value, {_PROJECTIONS}) -> Tensor[]",
)


@on_its_device
def _absorb(*arguments: Any) -> tuple[Tensor, ...]:
    return _module("kernels.slot_ops").absorb(Projections(*arguments[:-2]), *arguments[-2:])


@torch.library.register_fake("slotattn_fast::triton_absorb")
def _absorb_fake(*arguments: Any) -> tuple[Tensor, ...]:
    p, heads = Projections(*arguments[:-2]), arguments[-2]
    D, E, V = p.to_q.shape[1], heads * (p.to_k.shape[1] + 1), len(p.after)
    return p.to_q.new_empty(D, E), p.to_q.new_empty(E), p.to_q.new_empty(E, V)


@on_its_device
def _absorb_backward(*arguments: Any) -> list[Tensor]:
    p = Projections(*arguments[3:-2])
    grads = _module("kernels.slot_ops").absorb_backward(*arguments[:3], p, *arguments[-2:])
    return [d for d in grads if d is not None]


@torch.library.register_fake("slotattn_fast::triton_absorb_backward")
def _absorb_backward_fake(*arguments: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in arguments[3:-2] if x is not None]


def _absorb_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.heads, ctx.scale = inputs[-2:]
    ctx.save_for_backward(*inputs[:-2])


def _absorb_differentiate(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor | None, ...]:
    saved, needs = ctx.saved_tensors, ctx.needs_input_grad[:-2]
    if composite_is_due(d_outputs[0]):

        def again(*projections: Tensor) -> tuple[Tensor, ...]:
            return slot_update.absorb(Projections(*projections), ctx.heads, ctx.scale)

        return *gradients_of(again, saved, needs, d_outputs, torch.is_grad_enabled()), None, None
    take = _absorb_backward if _direct(*d_outputs) else torch.ops.slotattn_fast.triton_absorb_backward
    grads = take(*d_outputs, *saved, ctx.heads, ctx.scale)
    return *_placed(grads, saved, needs), None, None


torch.library.impl("slotattn_fast::triton_absorb", "CompositeExplicitAutograd", _absorb)
torch.library.impl("slotattn_fast::triton_absorb_backward", "CompositeExplicitAutograd", _absorb_backward)
torch.library.register_autograd(
    "slotattn_fast::triton_absorb", _absorb_differentiate, setup_context=_absorb_setup_context
)
_Absorb = _function("AbsorbedProjections", _absorb, _absorb_setup_context, _absorb_differentiate)
