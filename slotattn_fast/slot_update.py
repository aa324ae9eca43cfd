"""The small side of Slot Attention, over the K slots: folded weights, the next query, the slot update and its backward.

Equations and symbols are those at the head of `torch_backend`. The projections that meet without a nonlinearity between
them are multiplied once a call, so that an iteration has one product before and one after its pass over the inputs. In
both, the normalised input is extended by a constant 1, x-_n = (x^_n, 1), which carries every bias:

    q-_k = (q~_k, c_k) = LN(slot_k) Q + Q_0,   l_nk = q-_k . x-_n
    E_k  = (y_k, S_k)  = sum_n (a_nk + eps) x-_n
    W_ih u_k + b_ih    = (E_k / S_k) V + b       b_ih, and with heads W_ih times the bias of their combination

`fold` makes Q, Q_0 and V of the module's parameters and is differentiable: by PyTorch's operators (`absorb`) or by a
kernel (`operators.absorb`). Everything here has B * K rows and costs little beside the passes over the N inputs.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .cast import cast
from .kernels.arguments import Projections, Settings, Weights

Params = Mapping[str, Tensor]  # by the module's parameter names; an absent one leaves its layer out
Absorb = Callable[[Projections, int, float], tuple[Tensor, Tensor, Tensor]]


def absorb(p: Projections, heads: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Q [D, h * (D_in + 1)], Q_0 [h * (D_in + 1)] and V [h * (D_in + 1), V]; differentiable."""

    def extended(weight: Tensor, bias: Tensor | None) -> Tensor:
        """[h, d, D_in + 1]: keys (values) from x-_n, the affine part of the inputs' LayerNorm included."""
        constant = weight.new_zeros(len(weight)) if bias is None else bias
        if p.norm_input is not None:
            constant = torch.addmv(constant, weight, p.norm_input[1])
            weight = weight * p.norm_input[0]
            weight = weight - weight.mean(-1, keepdim=True)  # the same products, as x^_n has mean 0; so will dx^_n
        return torch.cat([weight, constant[:, None]], 1).unflatten(0, (heads, -1))

    # q-_k = scale (W_q s + b_q) K-
    keys = extended(p.to_k, p.to_k_bias) * scale
    to_q = p.to_q.unflatten(0, (heads, -1))  # [h, d, D]
    query = (to_q.mT @ keys).transpose(0, 1).flatten(1)
    query_bias = query.new_zeros(query.shape[1])
    if p.to_q_bias is not None:
        query_bias = (p.to_q_bias.view(heads, 1, -1) @ keys).flatten()
    value = extended(p.to_v, p.to_v_bias).mT
    if p.after is not None:
        value = value @ p.after.unflatten(1, (heads, -1)).transpose(0, 1).mT
    return query, query_bias, value.flatten(0, 1)


def fold(
    params: Params,
    slots: Tensor,
    heads: int,
    scale: float,
    absorb: Absorb = absorb,
) -> Weights:
    """The weights of the iterations from the module's parameters; differentiable.

    `slots` [B, K, D] gives the precision, the device and, where there are no projections, their width. `absorb` may be
    another way to compute the same.
    """
    dtype = compute_dtype(slots)
    p = dict(zip(params, cast([*params.values()], dtype), strict=True))
    if "to_q.weight" not in p:
        identity = torch.eye(slots.shape[-1], dtype=dtype, device=slots.device)
        p |= {f"{layer}.weight": identity for layer in ("to_q", "to_k", "to_v")}

    # The updates, or straight the GRU's gates: W_ih (W_c V- E / S + b_c) + b_ih
    after, value_bias = p.get("combine_heads.weight"), p.get("combine_heads.bias")
    direct = "norm_updates.weight" not in p
    if direct and "gru.weight_ih" in p:
        weight, bias = p["gru.weight_ih"], p["gru.bias_ih"]
        value_bias = bias if value_bias is None else torch.addmv(bias, weight, value_bias)
        after = weight if after is None else weight @ after

    query, query_bias, value = absorb(
        Projections(
            *(p["to_q.weight"], p.get("to_q.bias"), p["to_k.weight"], p.get("to_k.bias")),
            *(p["to_v.weight"], p.get("to_v.bias"), _affine(p, "norm_input"), after),
        ),
        heads,
        scale,
    )
    return Weights(
        query=query,
        query_bias=query_bias,
        value=value,
        value_bias=value_bias,
        norm_slots=_affine(p, "norm_slots"),
        norm_updates=_affine(p, "norm_updates"),
        gates=None if direct else p.get("gru.weight_ih"),
        gates_bias=None if direct else p.get("gru.bias_ih"),
        recurrent=p.get("gru.weight_hh"),
        recurrent_bias=p.get("gru.bias_hh"),
        norm_pre_ff=_affine(p, "norm_pre_ff"),
        hidden=p.get("mlp.0.weight"),
        hidden_bias=p.get("mlp.0.bias"),
        out=p.get("mlp.2.weight"),
        out_bias=p.get("mlp.2.bias"),
    )


def next_query(slots: Tensor, w: Weights, s: Settings) -> Tensor:
    """q- [B, h, K, D_in + 1] from the slots [B, K, D]."""
    return _heads_first(_linear(_norm(slots, w.norm_slots, s)[0], w.query, w.query_bias), s.heads)


def update(slots: Tensor, sums: Tensor, slot_mask: Tensor | None, w: Weights, s: Settings) -> Tensor:
    """The new slots [B, K, D]: values, GRU, residual MLP.

    Args:
        slots: the slots before the iteration [B, K, D].
        sums: E = (y, S) [B, h, K, D_in + 1].
        slot_mask: the slots that take part [B, K]; the others stay as they are.
    """
    new = updates = _linear(_heads_last(sums / divisor(sums, s)), w.value, w.value_bias)
    if w.norm_updates is not None:
        new = updates = _norm(updates, w.norm_updates, s)[0]
        if w.gates is not None:
            updates = F.linear(updates, w.gates, w.gates_bias)
    if w.recurrent is not None:
        new = _gru(updates, slots, w.recurrent, w.recurrent_bias)[0]
    if w.hidden is not None and w.out is not None:
        hidden = F.linear(_norm(new, w.norm_pre_ff, s)[0], w.hidden, w.hidden_bias).relu()
        new = new + F.linear(hidden, w.out, w.out_bias)
    return new if slot_mask is None else torch.where(slot_mask[..., None], new, slots)


class Tape(NamedTuple):
    """What the backward pass needs of the forward pass over the slots; None where a layer is left out."""

    slots: Tensor  # before the iteration [.., K, D]
    slots_mean: Tensor | None  # of their LayerNorm
    slots_rstd: Tensor | None
    slots_normed: Tensor
    divisor: Tensor  # [.., h, K, 1]
    mean: Tensor  # E / divisor [.., h, K, D_in + 1]
    r: Tensor | None
    z: Tensor | None
    candidate: Tensor | None
    recurrent: Tensor | None  # W_hn h + b_hn
    new: Tensor  # before the MLP
    new_mean: Tensor | None
    new_rstd: Tensor | None
    new_normed: Tensor
    hidden: Tensor | None

    def at(self, t: int, images: slice) -> "Tape":
        """The same for one iteration and a group of images."""
        return Tape._make(None if x is None else x[t, images] for x in self)


def recompute(slots: Tensor, sums: Tensor, w: Weights, s: Settings) -> Tape:
    """The tape of all iterations and images at once: slots [T, B, K, D], sums [T, B, h, K, D_in + 1]."""
    r = z = candidate = recurrent = hidden = None
    slots_normed, slots_mean, slots_rstd = _norm(slots, w.norm_slots, s)
    by = divisor(sums, s)
    mean = sums / by
    new = _linear(_heads_last(mean.flatten(0, 1)).unflatten(0, slots.shape[:2]), w.value, w.value_bias)
    if w.recurrent is not None:
        new, r, z, candidate, recurrent = _gru(new, slots, w.recurrent, w.recurrent_bias)
    new_normed, new_mean, new_rstd = _norm(new, w.norm_pre_ff, s)
    if w.hidden is not None:
        hidden = F.linear(new_normed, w.hidden, w.hidden_bias).relu()
    slots_side = (slots, slots_mean, slots_rstd, slots_normed, by, mean)
    return Tape._make((*slots_side, r, z, candidate, recurrent, new, new_mean, new_rstd, new_normed, hidden))


class Gradients:
    """The gradients to the weights: rows whose products are summed once, at the end, for all iterations."""

    def __init__(self, w: Weights) -> None:
        self.weights = w
        self.rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.sums: dict[str, Tensor] = {}

    def add_rows(self, name: str, left: Tensor, right: Tensor) -> None:
        """Weight `name` gets the sum over all rows of left^T right; its bias the sum of the output's gradient."""
        self.rows.setdefault(name, []).append((left.flatten(0, -2), right.flatten(0, -2)))

    def add(self, name: str, *parts: Tensor) -> None:
        total = torch.stack(parts)
        self.sums[name] = self.sums[name] + total if name in self.sums else total

    def total(self) -> Weights:
        for name, parts in self.rows.items():
            left, right = (torch.cat(side) for side in zip(*parts, strict=True))
            self.sums[name] = left.mT @ right
            # Q and V stand on the right of their product, the others (as in nn.Linear) on the left.
            self.sums[f"{name}_bias"] = (right if name in ("query", "value") else left).sum(0)
        return Weights._make(
            None if weight is None else self.sums[name] if name in self.sums else torch.zeros_like(weight)
            for name, weight in zip(Weights._fields, self.weights, strict=True)
        )


def next_query_backward(d_query: Tensor, tape: Tape, w: Weights, grads: Gradients) -> Tensor:
    """The gradient to the slots [B, K, D], from that to q- [B, h, K, D_in + 1]."""
    d_query = _heads_last(d_query)
    grads.add_rows("query", tape.slots_normed, d_query)
    d_normed = d_query @ w.query.mT
    return _norm_backward(d_normed, tape.slots, tape.slots_mean, tape.slots_rstd, "norm_slots", grads)


def update_backward(
    d_new: Tensor, slot_mask: Tensor | None, tape: Tape, w: Weights, s: Settings, grads: Gradients
) -> tuple[Tensor, Tensor]:
    """The gradients to the slots before the iteration [B, K, D] and to E [B, h, K, D_in + 1]."""
    d_kept = None
    if slot_mask is not None:
        d_kept = d_new.masked_fill(slot_mask[..., None], 0)
        d_new = d_new.masked_fill(~slot_mask[..., None], 0)

    if w.hidden is not None and w.out is not None and tape.hidden is not None:
        grads.add_rows("out", d_new, tape.hidden)
        d_hidden = torch.ops.aten.threshold_backward(d_new @ w.out, tape.hidden, 0)
        grads.add_rows("hidden", d_hidden, tape.new_normed)
        d_normed = d_hidden @ w.hidden
        d_new = d_new + _norm_backward(d_normed, tape.new, tape.new_mean, tape.new_rstd, "norm_pre_ff", grads)

    d_slots, d_updates = None, d_new
    if w.recurrent is not None and not (tape.r is None or tape.z is None):
        assert tape.candidate is not None
        # h' = (1 - z) n + z h,  n = tanh(i_n + r h_n),  r, z = sigmoid(i + h)
        d_n = torch.ops.aten.tanh_backward(torch.addcmul(d_new, d_new, tape.z, value=-1), tape.candidate)
        d_z = torch.ops.aten.sigmoid_backward(d_new * (tape.slots - tape.candidate), tape.z)
        d_r = torch.ops.aten.sigmoid_backward(d_n * tape.recurrent, tape.r)
        d_recurrent = torch.cat([d_r, d_z, d_n * tape.r], -1)
        d_updates = torch.cat([d_r, d_z, d_n], -1)
        grads.add_rows("recurrent", d_recurrent, tape.slots)
        d_slots = torch.addcmul(d_recurrent @ w.recurrent, d_new, tape.z)

    grads.add_rows("value", _heads_last(tape.mean), d_updates)
    # E / divisor; the divisor is S or S + eps in a weighted mean, 1 in a weighted sum
    d_mean = _heads_first(d_updates @ w.value.mT, s.heads)
    d_sums = d_mean / tape.divisor
    if s.aggregation == "mean":
        d_sums[..., -1] -= (d_sums * tape.mean).sum(-1)
    if d_kept is not None:
        d_slots = d_kept if d_slots is None else d_slots + d_kept
    return torch.zeros_like(tape.slots) if d_slots is None else d_slots, d_sums


def divisor(sums: Tensor, s: Settings) -> Tensor:
    """What the aggregation divides E by [.., h, K, 1]: S, or S + eps where eps is in the denominator, or 1 in a sum."""
    mass = sums[..., -1:]
    if s.aggregation != "mean":
        return torch.ones_like(mass)
    by = mass if s.eps_in == "numerator" else mass + s.eps
    return by.masked_fill(by == 0, 1)  # a slot to which nothing at all was given: a mean of 0, not NaN


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight + bias, for weights that stand on the right."""
    return F.linear(x, weight.mT, bias)


def _gru(gates: Tensor, slots: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """The GRU's new state, and what its backward pass needs: r, z, n and the recurrent part of n.

    `gates` [.., 3 D] is what it makes of its input; `weight` and `bias` are those of the state.
    """
    D = slots.shape[-1]
    recurrent = F.linear(slots, weight, bias)
    r, z = (gates[..., : 2 * D] + recurrent[..., : 2 * D]).sigmoid().chunk(2, -1)
    recurrent = recurrent[..., 2 * D :]
    candidate = torch.addcmul(gates[..., 2 * D :], r, recurrent).tanh()
    return torch.lerp(candidate, slots, z), r, z, candidate, recurrent  # (1 - z) n + z h


def _heads_first(x: Tensor, heads: int) -> Tensor:
    """[B, K, h * w] -> [B, h, K, w]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _heads_last(x: Tensor) -> Tensor:
    """[B, h, K, w] -> [B, K, h * w]."""
    return x.transpose(1, 2).flatten(2)


def _affine(params: Params, layer: str) -> Tensor | None:
    """A LayerNorm's weight and bias [2, D]."""
    weight = params.get(f"{layer}.weight")
    return None if weight is None else torch.stack([weight, params[f"{layer}.bias"]])


def _norm(x: Tensor, affine: Tensor | None, s: Settings) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """LayerNorm, and its mean and 1 / standard deviation; the identity without `affine`."""
    if affine is None:
        return x, None, None
    normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], affine[0], affine[1], s.norm_eps)
    return normed, mean, rstd


def _norm_backward(
    d_out: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor | None, name: str, grads: Gradients
) -> Tensor:
    if mean is None or rstd is None:
        return d_out
    weight, bias = getattr(grads.weights, name)
    d_x, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
        d_out, x, x.shape[-1:], mean, rstd, weight, bias, [True, True, True]
    )
    grads.add(name, d_weight, d_bias)
    return d_x
