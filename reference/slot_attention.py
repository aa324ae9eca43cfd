"""Slot Attention (Locatello et al., 2020) in plain PyTorch, to be read beside Algorithm 1 of the paper.

This is the oracle of every test: no fusion, no blocking, every tensor of the algorithm under its name in the paper. It
imports nothing else of this project. Shapes: B images, N inputs, K slots, D_in input width, D slot width, T iterations,
h heads of width d (without heads h = 1 and d = D).
"""

import math
import operator
from contextlib import suppress
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

# What each setting accepts; both modules and the functional form check against this one table.
CHOICES = {
    "weight_init": ("torch", "tensorflow"),
    "slot_init": ("shared", "per_slot", "vectors"),
    "softmax_over": ("slots", "inputs"),
    "aggregation": ("mean", "sum", "sum_norm"),
    "eps_in": ("numerator", "denominator"),
}


def integer(name: str, value: Any) -> int:
    """The value as an integer, also from NumPy's and the like. Raises TypeError for anything else."""
    if not isinstance(value, bool):
        if isinstance(value, int):
            return value
        with suppress(TypeError):
            return operator.index(value)
    raise TypeError(f"{name} must be an integer, got {value!r}")


def check_epsilons(eps: float, norm_eps: float) -> None:
    """Raise TypeError or ValueError unless both are numbers that are not negative."""
    for name, value in (("eps", eps), ("norm_eps", norm_eps)):
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not value >= 0:  # NaN is not
            raise ValueError(f"{name} must be at least 0, got {value!r}")


class SlotAttention(nn.Module):
    """Slot Attention: Algorithm 1 of the paper, with the switches of its Appendix B.

    With the defaults, parameter names, shapes, initialisation and the order of random draws are those of the PyPI
    package ``slot-attention``. `SlotAttention.paper` makes the paper's module.

    Args:
        num_slots: K, the number of slots, unless the call says otherwise.
        dim: D, the width of a slot.
        iters: T, the number of iterations, unless the call says otherwise.
        eps: the offset of Algorithm 1 (see `eps_in`).
        hidden_dim: width of the residual MLP's hidden layer; never less than `dim`.
        input_dim: D_in, the width of an input; None: `dim`.
        heads: number of heads, with the softmax over slots in each and a projection that combines them; None: the
            paper's single head without that projection.
        dim_head: width of a head; None: dim / heads.
        bias: whether the query, key and value projections have a bias (the paper: no).
        norm_eps: epsilon of every LayerNorm (the paper's code: 1e-3).
        weight_init: "torch", or "tensorflow" for that of the paper's code: Glorot-uniform weights, orthogonal recurrent
            weights, zero biases, `slots_mu` and `slots_logsigma` Glorot-uniform with fans (1, D).
        slot_init: "shared" (one learned Gaussian for all slots), "per_slot" (a learned Gaussian for each slot) or
            "vectors" (a learned vector for each slot, no noise).
        scale: factor on the logits; None: 1 / sqrt(d). Appendix B's "temperature 1" is scale=1.
        softmax_over: "slots", or "inputs" for the ablation of Appendix B, which goes with aggregation="sum".
        aggregation: "mean" (weighted mean), "sum" (weighted sum, without offset) or "sum_norm" (then a LayerNorm).
        eps_in: "numerator" (attention + eps) or "denominator" (eps added to the attention's sum over the inputs).
        use_gru: False: the update itself is the new slot.
        use_mlp: False: no residual MLP.
        use_norm: False: no LayerNorm on inputs, slots or the MLP's input.
        use_projections: False: queries, keys and values are the normalised slots and inputs themselves; needs
            input_dim == dim and no heads. Soft k-means: all four `use_` settings False.

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
        super().__init__()
        num_slots, dim, iters = integer("num_slots", num_slots), integer("dim", dim), integer("iters", iters)
        hidden_dim = integer("hidden_dim", hidden_dim)
        input_dim = dim if input_dim is None else integer("input_dim", input_dim)
        heads = None if heads is None else integer("heads", heads)
        dim_head = None if dim_head is None else integer("dim_head", dim_head)
        for name, size in {
            "num_slots": num_slots,
            "dim": dim,
            "hidden_dim": hidden_dim,
            "input_dim": input_dim,
        }.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if iters < 0:
            raise ValueError(f"iters must be at least 0, got {iters}")
        check_epsilons(eps, norm_eps)
        if scale is not None and not isinstance(scale, Real):
            raise TypeError(f"scale must be a number or None, got {scale!r}")
        settings = locals()
        for name, choices in CHOICES.items():
            if settings[name] not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {settings[name]!r}")
        if heads is None and dim_head is not None:
            raise ValueError(f"dim_head={dim_head} needs heads, got heads=None")
        if (heads is not None and heads < 1) or (dim_head is not None and dim_head < 1):
            raise ValueError(f"heads and dim_head must be at least 1, got heads={heads}, dim_head={dim_head}")
        if heads is not None and dim_head is None and dim % heads != 0:
            raise ValueError(f"heads must divide dim, or dim_head be given; got heads={heads}, dim={dim}")
        if not use_projections and (heads is not None or input_dim != dim):
            raise ValueError(
                "use_projections=False needs input_dim == dim and heads=None, "
                f"got input_dim={input_dim}, dim={dim}, heads={heads}"
            )
        dim_head = dim // (heads or 1) if dim_head is None else dim_head
        dim_inner = dim_head * (heads or 1)

        self.num_slots = num_slots
        self.dim = dim
        self.input_dim = input_dim
        self.iters = iters
        self.eps = eps
        self.heads = heads
        self.norm_eps = norm_eps
        self.slot_init = slot_init
        self.scale = dim_head**-0.5 if scale is None else scale
        self.softmax_over = softmax_over
        self.aggregation = aggregation
        self.eps_in = eps_in

        own = 1 if slot_init == "shared" else num_slots
        self.slots_mu = nn.Parameter(torch.randn(1, own, dim))
        if slot_init != "vectors":
            self.slots_logsigma = nn.Parameter(torch.empty(1, own, dim))
            nn.init.xavier_uniform_(self.slots_logsigma)

        def add_norms() -> None:
            if use_norm:
                self.norm_input = nn.LayerNorm(input_dim, eps=norm_eps)
                self.norm_slots = nn.LayerNorm(dim, eps=norm_eps)
                if use_mlp:
                    self.norm_pre_ff = nn.LayerNorm(dim, eps=norm_eps)

        # The PyPI package registers its LayerNorms first with heads and last without; an optimiser's state is stored in
        # that order, so it is the same here.
        if heads is not None:
            add_norms()
        if use_projections:
            self.to_q = nn.Linear(dim, dim_inner, bias=bias)
            self.to_k = nn.Linear(input_dim, dim_inner, bias=bias)
            self.to_v = nn.Linear(input_dim, dim_inner, bias=bias)
        if heads is not None:
            self.combine_heads = nn.Linear(dim_inner, dim)
        if use_gru:
            self.gru = nn.GRUCell(dim, dim)
        if use_mlp:
            hidden_dim = max(dim, hidden_dim)
            self.mlp = nn.Sequential(nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim))
        if heads is None:
            add_norms()
        if aggregation == "sum_norm":
            self.norm_updates = nn.LayerNorm(dim, eps=norm_eps)
        if weight_init == "tensorflow":
            self._init_as_tensorflow()

    @classmethod
    def paper(cls, num_slots: int, dim: int = 64, **options: Any) -> "SlotAttention":
        """The paper's module: no bias on q, k and v, LayerNorm epsilon 1e-3, TensorFlow's initialisation.

        Source: the paper's released code (google-research/slot_attention). `options` are the constructor's.
        """
        return cls(num_slots, dim, **{"bias": False, "norm_eps": 1e-3, "weight_init": "tensorflow", **options})

    def _init_as_tensorflow(self) -> None:
        limit = math.sqrt(6 / (1 + self.dim))  # Glorot with fans (1, D)
        nn.init.uniform_(self.slots_mu, -limit, limit)
        if self.slot_init != "vectors":
            nn.init.uniform_(self.slots_logsigma, -limit, limit)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GRUCell):
                nn.init.xavier_uniform_(module.weight_ih)
                nn.init.orthogonal_(module.weight_hh)
                nn.init.zeros_(module.bias_ih)
                nn.init.zeros_(module.bias_hh)

    def initial_slots(
        self,
        inputs: Tensor,
        num_slots: int,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Line 1 of Algorithm 1: slots [B, K, D] ~ N(mu, diag(sigma^2)); one `torch.randn`, none for "vectors".

        Args:
            inputs: [B, N, D_in].
            num_slots: K.
            generator: source of the draw; None: PyTorch's.
            noise: [B, K, D], standard normal, in place of the draw.

        Raises:
            ValueError: num_slots below 1, or not what `slot_init` learns; inputs on another device than the module;
                noise of another shape, beside a generator, or for "vectors".
            TypeError: num_slots is no integer, or generator no torch.Generator.
        """
        num_slots = integer("num_slots", num_slots)
        shape = (inputs.shape[0], num_slots, self.dim)
        if inputs.device != self.slots_mu.device:
            raise ValueError(f"inputs must be on {self.slots_mu.device} as the module is, got {inputs.device}")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or None, got {generator!r}")
        if num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, got {num_slots}")
        if self.slot_init != "shared" and num_slots != self.num_slots:
            learned = f"{self.num_slots} with slot_init={self.slot_init!r}, which learns as many"
            raise ValueError(f"num_slots must be {learned}, got {num_slots}")
        if noise is not None:
            if generator is not None:
                raise ValueError("noise takes the place of what generator draws, got both; give one of them")
            if self.slot_init == "vectors":
                raise ValueError("noise must be None with slot_init='vectors', which draws none")
            if noise.shape != shape:
                raise ValueError(f"noise must have shape [B, K, D] = {list(shape)}, got {list(noise.shape)}")
        mu = self.slots_mu.expand(shape)
        if self.slot_init == "vectors":
            return mu
        if noise is None:
            # torch.compile with dynamic shapes takes no generator, not even None.
            options: dict[str, Any] = {} if generator is None else {"generator": generator}
            noise = torch.randn(shape, device=inputs.device, dtype=inputs.dtype, **options)
        return mu + self.slots_logsigma.exp().expand(shape) * noise

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

        Arguments and results are those of `slotattn_fast.SlotAttention.forward`, which checks them; here they are not.
        """
        if slots_init is None:
            slots_init = self.initial_slots(inputs, self.num_slots if num_slots is None else num_slots, generator)
        slots = slots_init
        B, N, _ = inputs.shape
        K = slots.shape[1]
        h = self.heads or 1

        inputs_kept = torch.ones(B, N, dtype=torch.bool, device=inputs.device) if mask is None else mask
        slots_kept = torch.ones(B, K, dtype=torch.bool, device=inputs.device) if slot_mask is None else slot_mask
        kept = (inputs_kept[:, :, None] & slots_kept[:, None, :])[:, None]  # [B, 1, N, K]
        inputs = inputs.masked_fill(~inputs_kept[:, :, None], 0)  # padding may hold anything, NaN too

        # Algorithm 1, line by line.
        inputs = self._layer("norm_input", inputs)
        k = self._split_heads(self._layer("to_k", inputs), h)  # [B, h, N, d]
        v = self._split_heads(self._layer("to_v", inputs), h)  # [B, h, N, d]
        all_slots, all_attn = [], []
        for _ in range(self.iters if iters is None else iters):
            slots_prev = slots
            slots = self._layer("norm_slots", slots)
            q = self._split_heads(self._layer("to_q", slots), h)  # [B, h, K, d]
            logits = self.scale * k @ q.mT  # [B, h, N, K]
            logits = logits.masked_fill(~kept, -math.inf)
            attn = logits.softmax(dim=-1 if self.softmax_over == "slots" else -2)
            attn = attn.masked_fill(~kept, 0)  # also where all was masked and the softmax gave NaN
            weights = self._weights(attn, kept)  # [B, h, N, K]
            updates = weights.mT @ v  # [B, h, K, d]
            updates = updates.transpose(1, 2).flatten(2)
            updates = self._layer("norm_updates", self._layer("combine_heads", updates))  # [B, K, D]
            slots = updates
            if hasattr(self, "gru"):
                slots = self.gru(updates.flatten(0, 1), slots_prev.flatten(0, 1)).view_as(slots_prev)
            if hasattr(self, "mlp"):
                slots = slots + self.mlp(self._layer("norm_pre_ff", slots))
            slots = torch.where(slots_kept[:, :, None], slots, slots_prev)
            all_slots.append(slots)
            all_attn.append(weights if attn_over == "inputs" else attn)

        result = slots
        if return_all_slots:
            result = torch.stack(all_slots) if all_slots else slots.new_empty(0, *slots.shape)  # [T, B, K, D]
        if not return_attn:
            return result
        maps = torch.stack(all_attn) if return_attn == "all" else all_attn[-1]
        maps = maps.mT if self.heads is not None else maps.squeeze(-3).mT  # [..., h, K, N] or [..., K, N]
        return result, maps

    def _weights(self, attn: Tensor, kept: Tensor) -> Tensor:
        """The attention, normalised over the inputs for the weighted mean [B, h, N, K]."""
        if self.aggregation != "mean":
            return attn
        if self.eps_in == "numerator":
            attn = (attn + self.eps).masked_fill(~kept, 0)
            total = attn.sum(dim=-2, keepdim=True)
        else:
            total = attn.sum(dim=-2, keepdim=True) + self.eps
        return attn / total.masked_fill(total == 0, 1)  # nothing at all for a slot: weights of 0, not NaN

    def _layer(self, name: str, x: Tensor) -> Tensor:
        """The layer of that name, or the identity where the settings leave it out."""
        return getattr(self, name)(x) if hasattr(self, name) else x

    @staticmethod
    def _split_heads(x: Tensor, h: int) -> Tensor:
        """[B, n, h * d] -> [B, h, n, d]."""
        return x.unflatten(-1, (h, -1)).transpose(1, 2)


class MultiHeadSlotAttention(SlotAttention):
    """Slot Attention with heads, under the signature of the PyPI package's class of that name.

    Args:
        heads: number of heads; the softmax over slots is taken in each.
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
