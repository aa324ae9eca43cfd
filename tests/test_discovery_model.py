"""The auto-encoder of object discovery: its configuration, its noise, its loss."""

import subprocess
import sys

import pytest
import torch

from slotattn_fast.models.discovery import ObjectDiscovery
from slotattn_fast.models.discovery_config import DiscoveryConfig

TINY = DiscoveryConfig(
    image_size=11,
    encoder_channels=8,
    encoder_strides=(2, 1),
    num_slots=3,
    slot_dim=8,
    hidden_dim=8,
    decoder_channels=8,
    decoder_strides=(1, 2),
    output_stride=2,
    broadcast_size=3,
)
IMAGES = torch.rand(2, 3, 11, 11, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_the_configuration_needs_no_torch() -> None:
    code = "import sys, slotattn_fast.models.discovery_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("implicit", [False, True])
def test_given_noise_takes_the_place_of_the_draw(implicit: bool) -> None:
    model = ObjectDiscovery(DiscoveryConfig(**{**vars(TINY), "implicit": implicit}))
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
    torch.testing.assert_close(model.loss(images, noise), expected)
    torch.manual_seed(5)
    drawn = model.loss(images)
    torch.manual_seed(5)
    torch.testing.assert_close(drawn, model.loss(images, torch.randn(2, 3, 8, dtype=torch.float64)))


@pytest.mark.parametrize(("implicit", "iters"), [(False, 3), (True, 3), (True, 1), (True, 0)])
def test_what_asks_for_a_gradient_gets_one(implicit: bool, iters: int) -> None:
    model = ObjectDiscovery(DiscoveryConfig(**{**vars(TINY), "implicit": implicit, "iters": iters}))
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
