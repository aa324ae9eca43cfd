"""The modules: the reference's parameters and initial slots, computed by `functional.slot_attention`."""

from typing import Any

import torch
from torch import Tensor, nn

from .functional import BACKENDS, slot_attention
from .reference import SlotAttention as Reference
from .validation import LAYERS, NORMS, OPTIONAL, check_inputs, check_layer, check_mlp, check_slots, refused


class SlotAttention(Reference):
    """Slot Attention (Locatello et al., 2020), Algorithm 1: fast, exact, without attention maps kept in memory.

    A drop-in for the class of that name in the PyPI package ``slot-attention``: the same positional arguments,
    attributes, state_dict, initialisation and random draws. `SlotAttention.paper` makes the paper's module. Parameters,
    their initialisation and the initial slots are those of `slotattn_fast.reference.SlotAttention`. The layers (`to_q`,
    `gru`, ...) hold the parameters and are not called: hooks on them do not run, and a warning says so.
    Parametrizations (torch.nn.utils.parametrize) work; replacing a layer by one that computes something else is an
    error.

    Args:
        backend: "auto", "triton" or "torch"; see `explain_backend`.
        others: see `slotattn_fast.reference.SlotAttention`, which documents every one of them.

    Raises:
        ValueError: a setting out of range; the message names it.
    """

    def __init__(
        self,
        num_slots: int,
        dim: int,
        iters: int = 3,
        eps: float = 1e-8,
        hidden_dim: int = 128,
        *,
        backend: str = "auto",
        input_dim: int | None = None,
        heads: int | None = None,
        dim_head: int | None = None,
        bias: bool = True,
        norm_eps: float = 1e-5,
        weight_init: str = "torch",
        slot_init: str = "shared",
        scale: float | None = None,
        softmax_over: str = "slots",
        aggregation: str = "mean",
        eps_in: str = "numerator",
        use_gru: bool = True,
        use_mlp: bool = True,
        use_norm: bool = True,
        use_projections: bool = True,
    ) -> None:
        super().__init__(
            *(num_slots, dim, iters, eps, hidden_dim),
            input_dim=input_dim,
            heads=heads,
            dim_head=dim_head,
            bias=bias,
            norm_eps=norm_eps,
            weight_init=weight_init,
            slot_init=slot_init,
            scale=scale,
            softmax_over=softmax_over,
            aggregation=aggregation,
            eps_in=eps_in,
            use_gru=use_gru,
            use_mlp=use_mlp,
            use_norm=use_norm,
            use_projections=use_projections,
        )
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
        self.backend = backend

    def forward(
        self,
        inputs: Tensor,
        num_slots: int | None = None,
        *,
        iters: int | None = None,
        slots_init: Tensor | None = None,
        mask: Tensor | None = None,
        slot_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_attn: bool | str = False,
        attn_over: str = "slots",
        return_all_slots: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Map inputs to slots.

        Args:
            inputs: [B, N, D_in].
            num_slots: K; None: as `slots_init` has it, or the module's.
            iters: T; None: the module's.
            slots_init: the initial slots [B, K, D]; None: drawn, or learned, as `slot_init` of the constructor says.
            generator: source of the draw of the initial slots; None: PyTorch's.
            mask, slot_mask, return_attn, attn_over, return_all_slots: as in `slotattn_fast.slot_attention`.

        Returns:
            slots [B, K, D], or [T, B, K, D] with return_all_slots; with return_attn a pair of them and the attention.

        Raises:
            ValueError, TypeError, RuntimeError: as `slotattn_fast.slot_attention`; TypeError also for a layer that was
                replaced by one of another kind.
        """
        check_inputs(inputs, self.input_dim)
        if slots_init is None:
            num_slots = self.num_slots if num_slots is None else num_slots
            slots_init = self.initial_slots(inputs, num_slots, generator)
        check_slots(slots_init, inputs, num_slots, self.dim)
        return slot_attention(
            inputs,
            slots_init,
            self._iterated_parameters(),
            iters=self.iters if iters is None else iters,
            eps=self.eps,
            heads=self.heads or 1,
            scale=self.scale,
            norm_eps=self._norm_eps(),
            softmax_over=self.softmax_over,
            aggregation=self.aggregation,
            eps_in=self.eps_in,
            mask=mask,
            slot_mask=slot_mask,
            return_attn=return_attn,
            attn_over=attn_over,
            return_all_slots=return_all_slots,
            backend=self.backend,
        )

    def _iterated_parameters(self) -> dict[str, Tensor]:
        """The iterations' parameters, by attribute: layers may be tied, parametrised or joined by a subclass's."""
        params = {}
        for layer, path, kinds in _PLACES:
            module: Any = self
            for part in path:
                module = _child(module, part)
            if module is None or (layer in NORMS and type(module) is nn.Identity):
                continue
            check_layer(layer, module)
            for kind in kinds:
                value = module._parameters.get(kind)
                if value is None:  # left out, or parametrised
                    value = getattr(module, kind, None)
                if value is not None:
                    params[f"{layer}.{kind}"] = value
                elif f"{layer}.{kind}" not in OPTIONAL:
                    raise refused(layer, module, f"without a {kind}")
        check_mlp(getattr(self, "mlp", None))
        return params

    def _norm_eps(self) -> float:
        """As the LayerNorms have it, which are where it can be changed."""
        norms = [getattr(self, name, None) for name in NORMS]
        found = [norm.eps for norm in norms if isinstance(norm, nn.LayerNorm)]
        if len(set(found)) > 1:
            raise ValueError(f"the LayerNorms must have one eps, got {found}")
        return found[0] if found else self.norm_eps


_PLACES = [(layer, layer.split("."), tuple(kinds)) for layer, kinds in LAYERS.items()]


def _child(module: Any, name: str) -> Any:
    """`getattr(module, name, None)`, several times as fast for a submodule: a call asks for a dozen."""
    found = None if module is None else module._modules.get(name)
    return getattr(module, name, None) if found is None else found


class MultiHeadSlotAttention(SlotAttention):
    """Slot Attention with heads: a drop-in for the class of that name in the PyPI package ``slot-attention``.

    Args:
        heads: number of heads; the softmax over the slots is taken in each.
        dim_head: width of a head.
        options: every other argument of `SlotAttention`.
    """

    def __init__(
        self,
        num_slots: int,
        dim: int,
        heads: int = 4,
        dim_head: int = 64,
        iters: int = 3,
        eps: float = 1e-8,
        hidden_dim: int = 128,
        **options: Any,
    ) -> None:
        super().__init__(num_slots, dim, iters, eps, hidden_dim, heads=heads, dim_head=dim_head, **options)
