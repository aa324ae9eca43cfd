"""The torch backend as operators, so that torch.compile, torch.export and autograd take it as one piece."""

from typing import Any

import torch
from torch import Tensor

from .kernels.arguments import Settings, Weights
from .torch_backend import backward, composite, forward, forward_outputs

_ARGUMENTS = (
    "Tensor inputs, Tensor slots, Tensor? mask, Tensor? slot_mask, {saved}"
    + ", ".join(f"Tensor? {name}" for name in Weights._fields)
    + ", int iters, int heads, float eps, float norm_eps, str aggregation, str eps_in, bool norm_inputs"
)
torch.library.define("slotattn_fast::torch_forward", f"({_ARGUMENTS.format(saved='')}) -> (Tensor states, Tensor sums)")
torch.library.define(
    "slotattn_fast::torch_backward",
    f"(Tensor d_states, {_ARGUMENTS.format(saved='Tensor states, Tensor sums, ')}, bool need_d_inputs) -> Tensor[]",
)


def run(
    inputs: Tensor, slots: Tensor, mask: Tensor | None, slot_mask: Tensor | None, w: Weights, s: Settings
) -> Tensor:
    """The slots after every iteration [T, B, K, D]; differentiable, a second time by `composite`."""
    states, _ = torch.ops.slotattn_fast.torch_forward(inputs, slots, mask, slot_mask, *w, *s)
    return states.to(slots.dtype, copy=True)  # the operator's own are kept for the backward pass


def _weights_and_settings(arguments: tuple[Any, ...]) -> tuple[Weights, Settings]:
    return Weights(*arguments[: len(Weights._fields)]), Settings(*arguments[len(Weights._fields) :])


@torch.library.impl("slotattn_fast::torch_forward", "CompositeExplicitAutograd")
def _forward(
    inputs: Tensor, slots: Tensor, mask: Tensor | None, slot_mask: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return forward(inputs, slots, mask, slot_mask, *_weights_and_settings(arguments))


@torch.library.register_fake("slotattn_fast::torch_forward")
def _forward_fake(
    inputs: Tensor, slots: Tensor, mask: Tensor | None, slot_mask: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor]:
    return forward_outputs(inputs, slots, *_weights_and_settings(arguments))


# The gradients to the inputs (empty if not needed), the initial slots and every weight that there is.


@torch.library.impl("slotattn_fast::torch_backward", "CompositeExplicitAutograd")
def _backward(
    d_states: Tensor,
    inputs: Tensor,
    slots: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    states: Tensor,
    sums: Tensor,
    *arguments: Any,
) -> list[Tensor]:
    w, s = _weights_and_settings(arguments[:-1])
    # A backward pass may be run under autocast, which must not reach the arithmetic here.
    with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
        d_inputs, d_slots, d_weights = backward(
            d_states, inputs, slots, mask, slot_mask, states, sums, w, s, need_d_inputs=arguments[-1]
        )
    d_inputs = inputs.new_empty(0) if d_inputs is None else d_inputs
    return [d_inputs, d_slots, *(d for d in d_weights if d is not None)]


@torch.library.register_fake("slotattn_fast::torch_backward")
def _backward_fake(d_states: Tensor, inputs: Tensor, slots: Tensor, *arguments: Any) -> list[Tensor]:
    w, _ = _weights_and_settings(arguments[4:-1])  # after the masks, states and sums
    d_inputs = inputs.new_empty(inputs.shape if arguments[-1] else 0)
    return [d_inputs, *(x.new_empty(x.shape) for x in (slots, *w) if x is not None)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    w, s = _weights_and_settings(inputs[4:])
    ctx.save_for_backward(*inputs[:4], *output, *w)
    ctx.s = s


def _differentiate(ctx: Any, d_states: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    inputs, slots, mask, slot_mask, states, sums, *weights = ctx.saved_tensors
    tensors = (inputs, slots, *weights)
    needs = (*ctx.needs_input_grad[:2], *ctx.needs_input_grad[4 : 4 + len(weights)])
    create_graph = torch.is_grad_enabled()
    batched = torch._C._functorch.is_legacy_batchedtensor(d_states)  # is_grads_batched=True
    if not torch.compiler.is_compiling() and (create_graph or batched):
        with torch.enable_grad():
            again = composite(inputs, slots, mask, slot_mask, Weights(*weights), ctx.s)
        wanted = [x for x, need in zip(tensors, needs, strict=True) if need]
        grads = iter(torch.autograd.grad(again, wanted, d_states, create_graph=create_graph, allow_unused=True))
    else:
        arguments = (inputs, slots, mask, slot_mask, states, sums, *weights, *ctx.s, needs[0])
        outputs = torch.ops.slotattn_fast.torch_backward(d_states, *arguments)
        there = (need for x, need in zip(tensors, needs, strict=True) if x is not None)
        grads = (grad for grad, need in zip(outputs, there, strict=True) if need)
    d_inputs, d_slots, *d_weights = (next(grads) if need else None for need in needs)
    return d_inputs, d_slots, None, None, *d_weights, *[None] * len(ctx.s)


torch.library.register_autograd("slotattn_fast::torch_forward", _differentiate, setup_context=_setup_context)
