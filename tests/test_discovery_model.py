"""The auto-encoder of object discovery: its configuration, its noise, its loss."""

import subprocess
import sys
from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from tiny import TINY
from torch import Tensor

from slotattn_fast import reference
from slotattn_fast.mixture import reconstruction_loss
from slotattn_fast.models import discovery
from slotattn_fast.models.discovery import ObjectDiscovery
from slotattn_fast.models.discovery_config import DiscoveryConfig

IMAGES = torch.rand(2, 3, 11, 11, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_the_configuration_needs_no_torch() -> None:
    code = "import sys, slotattn_fast.models.discovery_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("implicit", [False, True])
def test_given_noise_takes_the_place_of_the_draw(implicit: bool) -> None:
    model = ObjectDiscovery(replace(TINY, implicit=implicit))
    noise = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    drawn = model(IMAGES, num_slots=5, generator=torch.Generator().manual_seed(1))
    given = model(IMAGES, num_slots=5, noise=noise)
    assert all(torch.equal(one, other) for one, other in zip(drawn, given, strict=True))


def test_noise_that_does_not_fit() -> None:
    model = ObjectDiscovery(TINY)
    with pytest.raises(ValueError, match=r"noise must have shape \[B, K, D\] = \[2, 3, 8\], got \[2, 4, 8\]"):
        model(IMAGES, noise=torch.zeros(2, 4, 8))
    with pytest.raises(ValueError, match="noise takes the place of what generator draws, got both"):
        model(IMAGES, noise=torch.zeros(2, 3, 8), generator=torch.Generator())


def test_the_loss_is_the_mean_squared_error_of_the_reconstruction() -> None:
    model = ObjectDiscovery(TINY).double()
    images, noise = IMAGES.double(), torch.randn(2, 3, 8, dtype=torch.float64)
    expected = (model(images, noise=noise).reconstruction - images).square().mean()
    loss = model.loss(images, noise)
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters))
    torch.manual_seed(5)
    drawn = model.loss(images)
    torch.manual_seed(5)
    torch.testing.assert_close(drawn, model.loss(images, torch.randn(2, 3, 8, dtype=torch.float64)))


def test_the_loss_is_fused_on_the_configured_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def record(maps: Tensor, images: Tensor, backend: str) -> Tensor:
        calls.append((maps.shape, backend))
        return reconstruction_loss(maps, images, backend)

    monkeypatch.setattr(discovery, "reconstruction_loss", record)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ObjectDiscovery(replace(TINY, backend="torch")).loss(IMAGES)
    assert calls == [((2, 3, 4, 11, 11), "torch")]
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(("implicit", "iters"), [(False, 3), (True, 3), (True, 1), (True, 0)])
def test_what_asks_for_a_gradient_gets_one(implicit: bool, iters: int) -> None:
    model = ObjectDiscovery(replace(TINY, implicit=implicit, iters=iters))
    model.loss(IMAGES).backward()
    initial = {"slot_attention.slots_mu", "slot_attention.slots_logsigma"}
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == (
        initial if implicit and iters > 1 else set()
    )
    if iters:
        assert without == (initial if implicit and iters > 1 else set())
    else:
        assert initial.isdisjoint(without)


KMEANS = {"use_gru": False, "use_mlp": False, "use_norm": False, "use_projections": False}
# The paper's Appendix B, figure by figure; without an ablation the layers are `PAPER`.
PAPER = {"slots_mu", "slots_logsigma", "to_q", "to_k", "to_v", "gru", "mlp", "norm_input", "norm_slots", "norm_pre_ff"}
NORMS = {"norm_input", "norm_slots", "norm_pre_ff"}
ABLATIONS = {
    "figure 7: weighted sum": ({"aggregation": "sum"}, PAPER),
    "figure 7: weighted sum and LayerNorm": ({"aggregation": "sum_norm"}, PAPER | {"norm_updates"}),
    "figure 8: no position embedding": ({"position_embedding": False}, PAPER),
    "figure 9: a Gaussian for each slot": ({"slot_init": "per_slot"}, PAPER),
    "figure 10: softmax over the inputs": ({"softmax_over": "inputs", "aggregation": "sum"}, PAPER),
    "figure 11: no GRU": ({"use_gru": False}, PAPER - {"gru"}),
    "figure 12: one iteration": ({"iters": 1}, PAPER),
    "figure 13: no LayerNorm": ({"use_norm": False}, PAPER - NORMS),
    "figure 14: no MLP": ({"use_mlp": False}, PAPER - {"mlp", "norm_pre_ff"}),
    "figure 15: temperature 1": ({"scale": 1}, PAPER),
    "figure 16: offset in the denominator": ({"eps_in": "denominator"}, PAPER),
    "figure 19: more slots": ({"num_slots": 5}, PAPER),
    "soft k-means": (KMEANS, {"slots_mu", "slots_logsigma"}),
}


@pytest.mark.parametrize(("ablation", "layers"), ABLATIONS.values(), ids=ABLATIONS)
def test_ablations_of_appendix_b(ablation: dict[str, object], layers: set[str]) -> None:
    """Each is the paper's algorithm with that switch, and learns in a step."""
    torch.manual_seed(0)
    config = replace(TINY, **ablation)
    model = ObjectDiscovery(config).double()
    assert {name.split(".")[0] for name, _ in model.slot_attention.named_parameters()} == layers
    images, noise = IMAGES.double(), torch.randn(2, config.num_slots, 8, dtype=torch.float64)

    switches = {name: ablation[name] for name in ablation if name not in ("position_embedding", "iters", "num_slots")}
    plain = reference.SlotAttention.paper(
        config.num_slots, 8, input_dim=8, iters=config.iters, hidden_dim=8, **switches
    ).double()
    plain.load_state_dict(model.slot_attention.state_dict())
    tokens = model.encoder(images)
    expected = plain(tokens, slots_init=plain.initial_slots(tokens, config.num_slots, noise=noise))
    # Tight, as an offset of 1e-8 is one of the switches.
    torch.testing.assert_close(model(images, noise=noise).slots, expected, rtol=1e-11, atol=1e-11)

    loss = model.loss(images, noise)
    loss.backward()
    without = {name for name, p in model.named_parameters() if p.grad.abs().max() < 1e-12}
    # What all slots have in common cancels in a softmax over them; without a GRU and LayerNorm nothing else sees it.
    common = {"slots_mu"} if ablation is KMEANS else {"norm_slots.bias"} if "norm_slots" in layers else set()
    assert without == ({f"slot_attention.{name}" for name in common} if config.softmax_over == "slots" else set())
    torch.optim.Adam(model.parameters(), lr=1e-3).step()
    assert model.loss(images, noise) < loss


def test_without_position_embedding_a_shifted_pattern_is_the_same_set() -> None:
    model = ObjectDiscovery(replace(TINY, position_embedding=False, encoder_strides=(1, 1))).double()
    noise = torch.randn(1, 3, 8, dtype=torch.float64)
    images = torch.zeros(1, 3, 11, 11, dtype=torch.float64)
    images[..., 5, 5] = 1
    one, other = (model(x, noise=noise).slots for x in (images, images.roll(1, 3)))
    assert (model(images.roll(1, 3) * 2, noise=noise).slots - one).abs().max() > 1e-3
    # Seen from afar by kernels that do not reach the border, the places of the features alone differ.
    torch.testing.assert_close(one, other)


def test_a_gaussian_for_each_slot_has_no_other_number_of_slots() -> None:
    model = ObjectDiscovery(replace(TINY, slot_init="per_slot"))
    with pytest.raises(ValueError, match="num_slots must be 3 with slot_init='per_slot', which learns as many, got 4"):
        model(IMAGES, num_slots=4)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"position_embedding": None}, TypeError, "position_embedding: got None, expected True or False"),
        ({"use_gru": 0}, TypeError, "use_gru: got 0, expected True or False"),
        ({"slot_init": "vectors"}, ValueError, "slot_init: got 'vectors', expected one of 'shared', 'per_slot'"),
        ({"aggregation": "max"}, ValueError, "aggregation: got 'max', expected one of 'mean', 'sum', 'sum_norm'"),
        ({"softmax_over": "inputs"}, ValueError, "aggregation: got 'mean', expected 'sum' with softmax_over='inputs'"),
        (
            {"aggregation": "sum", "eps_in": "denominator"},
            ValueError,
            "eps_in: got 'denominator', expected 'numerator' with aggregation='sum', which has no denominator",
        ),
        (
            {"use_projections": False, "slot_dim": 9},
            ValueError,
            "encoder_channels: got 8, expected slot_dim=9 with use_projections=False",
        ),
        ({"scale": 0}, ValueError, "scale: got 0, expected a finite number above 0, or None"),
        ({"scale": float("inf")}, ValueError, "scale: got inf, expected a finite number"),
        ({"scale": True}, ValueError, "scale: got True, expected a finite number"),
    ],
)
def test_ablations_that_cannot_be(changes: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        replace(TINY, **changes)


def test_choices_are_the_modules() -> None:
    for field in fields(DiscoveryConfig):
        if field.name in reference.CHOICES:
            assert set(get_args(field.type)) <= set(reference.CHOICES[field.name])


def test_the_noise_that_a_call_draws() -> None:
    model = ObjectDiscovery(replace(TINY, num_slots=5))
    assert model.noise_shape(7) == (7, 5, 8)
