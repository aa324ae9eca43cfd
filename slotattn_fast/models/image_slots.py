"""What both of the paper's models begin with: an image becomes tokens, and Slot Attention makes slots of them."""

import torch
from torch import Tensor, nn

from slotattn_fast.models.encoder import Encoder
from slotattn_fast.models.slot_mlp import SlotMLP
from slotattn_fast.models.slots_config import SlotsConfig
from slotattn_fast.modules import SlotAttention


class ImageSlots(nn.Module):
    """Convolutional encoder, and Slot Attention or the baseline in its place.

    Source: the paper, section 2, Appendix E.1, for the baseline E.5.
    """

    config: SlotsConfig

    def __init__(self, config: SlotsConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(
            config.image_size,
            config.image_channels,
            config.encoder_channels,
            config.encoder_strides,
            config.position_embedding,
        )
        if config.grouping == "slot-mlp":
            self.slot_mlp = SlotMLP(self.encoder.size, config.encoder_channels, config.num_slots, config.slot_dim)
        else:
            self.slot_attention = _slot_attention(config)

    def tokens(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, encoder_channels]. Raises ValueError for images of another shape than the model's."""
        c = self.config
        if images.ndim != 4 or images.shape[1:] != (c.image_channels, c.image_size, c.image_size):
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, expected [B, {c.image_channels}, {c.image_size}, "
                f"{c.image_size}]"
            )
        return self.encoder(images)

    def slots(
        self,
        tokens: Tensor,
        num_slots: int | None = None,
        iters: int | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """[B, N, C] -> [B, K, D]; the other arguments and what is raised are those of the models' `forward`."""
        c = self.config
        if c.grouping == "slot-mlp":
            for name, value, expected in (("num_slots", num_slots, c.num_slots), ("iters", iters, c.iters)):
                if value not in (None, expected):
                    raise ValueError(
                        f"{name}: got {value}, expected none, as the model has grouping='slot-mlp': "
                        f"{c.num_slots} slots and no iterations"
                    )
            if noise is not None:
                raise ValueError("noise: got a tensor, expected None, as grouping='slot-mlp' draws none")
            return self.slot_mlp(tokens)
        iters = c.iters if iters is None else iters
        slots = self.initial_slots(tokens, num_slots, generator, noise)
        if c.implicit and iters > 1:
            with torch.no_grad():
                slots = self.slot_attention(tokens, iters=iters - 1, slots_init=slots)
            iters = 1
        return self.slot_attention(tokens, iters=iters, slots_init=slots)

    def initial_slots(
        self,
        tokens: Tensor,
        num_slots: int | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """[B, K, D], drawn, or made of `noise`."""
        num_slots = self.config.num_slots if num_slots is None else num_slots
        return self.slot_attention.initial_slots(tokens, num_slots, generator, noise)

    def every_iteration(
        self,
        images: Tensor,
        iters: int | None = None,
        num_slots: int | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The slots after each iteration [T, B, K, D], and the attention that made them [T, B, K, h, w].

        The attention is over the encoder's map. Raises ValueError for grouping="slot-mlp", no iteration, or as
        `forward` of the models does.
        """
        c = self.config
        iters = c.iters if iters is None else iters
        if c.grouping == "slot-mlp":
            raise ValueError("iterations: got a model with grouping='slot-mlp', which has none; use forward")
        if iters < 1:
            raise ValueError(f"iters: got {iters}, expected at least 1")
        tokens = self.tokens(images)
        slots = self.initial_slots(tokens, num_slots, generator, noise)
        every, attention = self.slot_attention(
            tokens, iters=iters, slots_init=slots, return_attn="all", return_all_slots=True
        )
        return every, attention.unflatten(-1, (self.encoder.size, self.encoder.size))

    def noise_shape(self, batch_size: int) -> tuple[int, int, int] | None:
        """The shape [B, K, D] of the noise that a call draws for `batch_size` images; None if it draws none."""
        c = self.config
        return None if c.grouping == "slot-mlp" else (batch_size, c.num_slots, c.slot_dim)


def _slot_attention(config: SlotsConfig) -> SlotAttention:
    module = SlotAttention.paper(
        config.num_slots,
        config.slot_dim,
        input_dim=config.encoder_channels,
        iters=config.iters,
        hidden_dim=config.hidden_dim,
        backend=config.backend,
        slot_init=config.slot_init,
        softmax_over=config.softmax_over,
        aggregation=config.aggregation,
        eps_in=config.eps_in,
        scale=config.scale,
        use_gru=config.use_gru,
        use_norm=config.use_norm,
        use_mlp=config.use_mlp,
        use_projections=config.use_projections,
    )
    if config.implicit and config.iters > 1:
        # No gradient arrives there, and DistributedDataParallel waits for one of whatever asks for it.
        for parameter in (module.slots_mu, module.slots_logsigma):
            parameter.requires_grad_(False)
    return module
