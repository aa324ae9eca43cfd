"""The Slot MLP baseline, by itself and in the auto-encoder."""

from dataclasses import replace

import pytest
import torch

from slotattn_fast.models.discovery import ObjectDiscovery
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.models.slot_mlp import SlotMLP

CONFIG = DiscoveryConfig(
    image_size=11,
    encoder_channels=8,
    encoder_strides=(2, 1),
    num_slots=3,
    slot_dim=8,
    decoder_channels=8,
    decoder_strides=(1, 2),
    output_stride=2,
    broadcast_size=3,
    grouping="slot-mlp",
)
IMAGES = torch.rand(2, 3, 11, 11, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_the_map_is_resized_and_flattened() -> None:
    """A map of 32x32 halves: each value is the mean of the four around it, in the place of those four."""
    module = SlotMLP(32, 2, 3, 4).double()
    tokens = torch.randn(2, 32 * 32, 2, dtype=torch.float64)
    rows = tokens.view(2, 16, 2, 16, 2, 2).mean((2, 4))  # [B, 16, 16, C]
    torch.testing.assert_close(module(tokens), module.mlp(rows.permute(0, 3, 1, 2).flatten(1)).view(2, 3, 4))


def test_the_papers_size() -> None:
    model = ObjectDiscovery(DiscoveryConfig(grouping="slot-mlp"))
    sizes = [(p.shape[1], p.shape[0]) for p in model.slot_mlp.parameters() if p.ndim == 2]
    assert sizes == [(16 * 16 * 32, 512), (512, 512), (512, 4 * 64)]
    assert not hasattr(model, "slot_attention")
    weight = model.slot_mlp.mlp[2].weight
    assert 0.99 * (6 / 1024) ** 0.5 < weight.abs().max() <= (6 / 1024) ** 0.5  # Glorot's


def test_it_learns_and_draws_no_noise() -> None:
    torch.manual_seed(0)
    model = ObjectDiscovery(CONFIG)
    assert model.noise_shape(2) is None
    state = torch.get_rng_state()
    loss = model.loss(IMAGES)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    torch.optim.Adam(model.parameters(), lr=1e-4).step()
    assert model.loss(IMAGES) < loss
    output = model(IMAGES, generator=torch.Generator())
    assert output.slots.shape == (2, 3, 8)
    assert output.masks.shape == (2, 3, 1, 11, 11)
    assert torch.equal(torch.get_rng_state(), state)


def test_slots_are_ordered() -> None:
    """Unlike Slot Attention's, they are not the same for the same tokens in another order."""
    module = SlotMLP(6, 8, 3, 4)
    tokens = torch.randn(1, 36, 8)
    assert (module(tokens) - module(tokens.flip(1))).abs().max() > 1e-3
    assert (module(tokens)[:, 0] - module(tokens)[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"num_slots": 4}, "num_slots: got 4, expected none, as the model has grouping='slot-mlp': 3 slots and no"),
        ({"iters": 5}, "iters: got 5, expected none"),
        ({"noise": torch.zeros(2, 3, 8)}, "noise: got a tensor, expected None, as grouping='slot-mlp' draws none"),
    ],
)
def test_what_it_cannot_do(call: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ObjectDiscovery(CONFIG)(IMAGES, **call)


@pytest.mark.parametrize(
    "ablation",
    [
        {"slot_init": "per_slot"},
        {"softmax_over": "inputs", "aggregation": "sum"},
        {"aggregation": "sum_norm"},
        {"eps_in": "denominator"},
        {"scale": 1.0},
        {"use_gru": False},
        {"use_norm": False},
        {"use_mlp": False},
        {"use_projections": False},
    ],
)
def test_it_takes_none_of_slot_attentions_ablations(ablation: dict[str, object]) -> None:
    says = rf"({'|'.join(ablation)}): got .*, expected .* with grouping='slot-mlp', which has no Slot Attention"
    with pytest.raises(ValueError, match=says):
        replace(CONFIG, **ablation)


def test_presets_take_it() -> None:
    replace(CONFIG, implicit=True, iters=10, position_embedding=False)
    with pytest.raises(ValueError, match="grouping: got 'mlp', expected one of 'slot-attention', 'slot-mlp'"):
        replace(CONFIG, grouping="mlp")
