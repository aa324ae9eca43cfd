"""What a call is made of besides its inputs and slots: plain data that every backend takes."""

from typing import NamedTuple

from torch import Tensor


class Settings(NamedTuple):
    """What a call computes, besides its tensors; the fields are arguments of `slotattn_fast.slot_attention`."""

    iters: int
    heads: int
    eps: float
    norm_eps: float
    aggregation: str
    eps_in: str
    norm_inputs: bool

    @property
    def offset(self) -> float:
        """What is added to every attention coefficient."""
        return self.eps if self.aggregation == "mean" and self.eps_in == "numerator" else 0.0


class Projections(NamedTuple):
    """What is absorbed into the query and value weights, once a call; None where a layer has no bias or is left out."""

    to_q: Tensor  # [h * d, D]
    to_q_bias: Tensor | None  # [h * d]
    to_k: Tensor  # [h * d, D_in]
    to_k_bias: Tensor | None  # [h * d]
    to_v: Tensor  # [h * d, D_in]
    to_v_bias: Tensor | None  # [h * d]
    norm_input: Tensor | None  # LayerNorm's weight and bias [2, D_in]
    after: Tensor | None  # what follows the values [V, h * d]: the GRU's input weights, the layer that combines heads


class Weights(NamedTuple):
    """What the iterations multiply with, in the precision of the computation; None where a layer is left out."""

    query: Tensor  # Q [D, h * (D_in + 1)]
    query_bias: Tensor  # Q_0 [h * (D_in + 1)]
    value: Tensor  # V [h * (D_in + 1), 3 D], with the GRU's input weights; [.., D] if there is no GRU or norm_updates
    value_bias: Tensor | None  # [3 D] or [D]
    norm_slots: Tensor | None  # LayerNorm's weight and bias [2, D], here and below
    norm_updates: Tensor | None  # [2, D]
    gates: Tensor | None  # the GRU's input weights where norm_updates stands before them [3 D, D]
    gates_bias: Tensor | None  # [3 D]
    recurrent: Tensor | None  # [3 D, D]
    recurrent_bias: Tensor | None  # [3 D]
    norm_pre_ff: Tensor | None  # [2, D]
    hidden: Tensor | None  # [H, D]
    hidden_bias: Tensor | None  # [H]
    out: Tensor | None  # [D, H]
    out_bias: Tensor | None  # [D]
