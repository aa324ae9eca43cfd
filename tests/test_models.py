import dataclasses
import inspect

import numpy as np
import pytest
import torch
from compare import assert_same, normal, perturb
from slotattn_fast.reference import AutoEncoder, auto_encoder
from slotattn_fast.reference import encoder as plain_encoder
from tiny import TINY
from torch import nn

from slotattn_fast.models import convolution
from slotattn_fast.models.convolution import SameConv2d, SameConvTranspose2d, same_padding
from slotattn_fast.models.discovery import ObjectDiscovery
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.models.encoder import Encoder
from slotattn_fast.models.position_embedding import PositionEmbedding
from slotattn_fast.train.config import PRESETS

TINY_TETROMINOES = dataclasses.replace(
    TINY, encoder_strides=(1, 1), decoder_strides=(1, 1, 1), output_stride=1, broadcast_size=11
)
TINY_CLEVR6 = dataclasses.replace(
    TINY, image_size=16, encoder_strides=(1, 1), decoder_strides=(2, 2, 1), output_stride=1, broadcast_size=4
)


def convolve_same(image, kernel, stride):
    """TensorFlow's definition in loops: ceil(n / stride) outputs, zeros on both sides, the odd one last."""
    (height, width), size = image.shape, len(kernel)
    out = np.zeros((-(-height // stride), -(-width // stride)))
    top = max((out.shape[0] - 1) * stride + size - height, 0) // 2
    left = max((out.shape[1] - 1) * stride + size - width, 0) // 2
    for (i, j), (a, b) in ((p, q) for p in np.ndindex(out.shape) for q in np.ndindex(kernel.shape)):
        y, x = i * stride + a - top, j * stride + b - left
        if 0 <= y < height and 0 <= x < width:
            out[i, j] += image[y, x] * kernel[a, b]
    return out


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding"),
    [
        (128, 5, 2, (1, 2)),
        (35, 5, 2, (2, 2)),
        (35, 5, 1, (2, 2)),
        (8, 3, 1, (1, 1)),
        (7, 2, 1, (0, 1)),
        (9, 1, 3, (0, 0)),
    ],
)
def test_same_padding_by_hand(size, kernel_size, stride, padding):
    assert same_padding(size, kernel_size, stride) == padding


def test_a_strided_convolution_pads_one_before_and_two_after():
    layer = SameConv2d(1, 1, 5, 2)
    nn.init.ones_(layer.weight)
    # Windows of five start at -1, 1 and 3: they hold (0 1 2 3), (1 2 3 4 5) and (3 4 5).
    row = torch.arange(6.0)
    out = layer((torch.ones(6, 1) * row)[None])
    assert out[0, 1].tolist() == [5 * 6.0, 5 * 15.0, 5 * 12.0]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    ("layers", "shape"),
    [(convolution, (8, 8)), (convolution, (7, 10)), (plain_encoder, (8, 8)), (plain_encoder, (7, 7))],
)
def test_convolution_against_loops(layers, stride, shape):
    layer = layers.SameConv2d(1, 1, 5, stride).double()
    nn.init.zeros_(layer.bias)
    image = torch.randn(shape, dtype=torch.float64)
    expected = convolve_same(image.numpy(), layer.weight[0, 0].detach().numpy(), stride)
    assert layer(image[None]).detach()[0].numpy() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("layers", [convolution, auto_encoder])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (5, 1), (5, 2), (3, 2), (4, 1), (5, 3), (5, 5)])
def test_transposed_convolution_is_the_transpose(layers, kernel_size, stride):
    # Of the convolution from the large map to the small one: <conv(large), small> = <large, transposed(small)>.
    transposed = layers.SameConvTranspose2d(3, 4, kernel_size, stride).double()
    forward = SameConv2d(4, 3, kernel_size, stride).double()
    forward.weight = transposed.weight
    nn.init.zeros_(transposed.bias)
    small = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    large = torch.randn(2, 4, 6 * stride, 5 * stride, dtype=torch.float64)
    assert transposed(small).shape == large.shape
    torch.testing.assert_close((forward(large) * small).sum(), (large * transposed(small)).sum())


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (5, 1), (5, 2)])
def test_transposed_convolution_is_pytorchs_cropped(kernel_size, stride):
    layer = SameConvTranspose2d(3, 4, kernel_size, stride).double()
    nn.init.normal_(layer.bias)
    small = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    full = nn.functional.conv_transpose2d(small, layer.weight, layer.bias, stride)
    crop = (kernel_size - stride) // 2
    torch.testing.assert_close(layer(small), full[..., crop : crop + 6 * stride, crop : crop + 5 * stride])


def test_a_strided_transposed_convolution_gives_channels_last():
    """On a GPU PyTorch's pixel shuffle does not, and every convolution after it would be in the slower order."""
    maps = SameConvTranspose2d(3, 4, 5, 2)(torch.randn(2, 3, 6, 5))
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert not maps.is_contiguous()


def test_initialisation_is_tensorflows():
    for layer, limit in (
        (SameConv2d(8, 16, 5), (6 / (25 * 24)) ** 0.5),
        (SameConvTranspose2d(8, 16, 5, 2), (6 / (25 * 24)) ** 0.5),
        (PositionEmbedding(64, 2, 2).dense, (6 / 68) ** 0.5),
        (Encoder(8, 3, 64, (1,)).mlp[1], (6 / 128) ** 0.5),
    ):
        assert 0.9 * limit < layer.weight.abs().max() <= limit
        assert not layer.bias.any()
    assert Encoder(8, 3, 64, (1,)).mlp[0].eps == 1e-3


def test_position_embedding_is_row_column_and_their_complements():
    embedding = PositionEmbedding(4, 3, 2)
    nn.init.eye_(embedding.dense.weight)
    out = embedding(torch.zeros(3, 2, 4))
    assert out.tolist() == [
        [[0, 0, 1, 1], [0, 1, 1, 0]],
        [[0.5, 0, 0.5, 1], [0.5, 1, 0.5, 0]],
        [[1, 0, 0, 1], [1, 1, 0, 0]],
    ]
    assert list(embedding.state_dict()) == ["dense.weight", "dense.bias"]


@pytest.mark.parametrize("config", [TINY, TINY_TETROMINOES, TINY_CLEVR6], ids=["quick", "tetrominoes", "clevr6"])
def test_the_model_is_the_plain_one(config):
    sizes = {name: getattr(config, name) for name in inspect.signature(AutoEncoder).parameters}
    plain, fast = perturb(AutoEncoder(**sizes)).double(), ObjectDiscovery(config).double()
    fast.load_state_dict(plain.state_dict())
    AutoEncoder(**sizes).load_state_dict(fast.state_dict())
    fast.to(memory_format=torch.channels_last)  # as in training
    images = normal(2, 3, config.image_size, config.image_size)
    noise = normal(2, config.num_slots, config.slot_dim, seed=1)

    def run(model):
        loss, parameters = model.loss(images, noise), dict(model.named_parameters())
        grads = torch.autograd.grad(loss, list(parameters.values()))
        outputs = {f"output {i}": value for i, value in enumerate(model(images, noise=noise))}
        return outputs | {"loss": loss} | dict(zip(parameters, grads, strict=True))

    assert_same(run(fast), run(plain), 1e-12)


def test_output():
    model = ObjectDiscovery(TINY)
    images = torch.rand(2, 3, 11, 11) * 2 - 1
    out = model(images, generator=torch.Generator().manual_seed(1))
    assert out.rgb.shape == (2, 3, 3, 11, 11)
    assert out.masks.shape == (2, 3, 1, 11, 11)
    assert out.slots.shape == (2, 3, 8)
    torch.testing.assert_close(out.masks.sum(1), torch.ones(2, 1, 11, 11))
    torch.testing.assert_close(out.reconstruction, (out.masks * out.rgb).sum(1))

    again = model(images, generator=torch.Generator().manual_seed(1))
    assert all((one == other).all() for one, other in zip(out, again, strict=True))
    assert (model(images, generator=torch.Generator().manual_seed(2)).slots != out.slots).any()
    assert model(images, num_slots=5).masks.shape == (2, 5, 1, 11, 11)
    assert (model(images, iters=0, generator=torch.Generator().manual_seed(1)).slots != out.slots).any()


def test_images_do_not_mix():
    model = ObjectDiscovery(TINY)
    images = torch.rand(2, 3, 11, 11)
    clean = model(images, generator=torch.Generator().manual_seed(1))
    images[0, 0, 0, 0] = torch.nan
    spoilt = model(images, generator=torch.Generator().manual_seed(1))
    assert spoilt.reconstruction[0].isnan().any()
    assert (spoilt.reconstruction[1] == clean.reconstruction[1]).all()


@pytest.mark.parametrize("iters", [0, 1, 3])
def test_implicit_is_the_gradient_of_the_last_iteration(iters):
    config = dataclasses.replace(TINY, iters=iters)
    torch.manual_seed(0)
    explicit = ObjectDiscovery(config).double()
    implicit = ObjectDiscovery(dataclasses.replace(config, implicit=True)).double()
    implicit.load_state_dict(explicit.state_dict())
    images = torch.rand(2, 3, 11, 11, dtype=torch.float64)

    def run(model, **call):
        output = model(images, generator=torch.Generator().manual_seed(1), **call)
        model.zero_grad()
        output.reconstruction.square().sum().backward()
        return output, {name: p.grad for name, p in model.named_parameters()}

    (one, all_grads), (other, grads) = run(explicit), run(implicit)
    torch.testing.assert_close(one.slots, other.slots)
    torch.testing.assert_close(one.reconstruction, other.reconstruction)
    if iters < 2:
        torch.testing.assert_close(all_grads, grads)
        return
    # By hand: the slots before the last iteration, as constants.
    attention = explicit.slot_attention
    tokens = explicit.encoder(images)
    before = attention(tokens, iters=iters - 1, generator=torch.Generator().manual_seed(1)).detach()
    rgb, logits = explicit.decoder(attention(tokens, iters=1, slots_init=before))
    explicit.zero_grad()
    (logits.softmax(1) * rgb).sum(1).square().sum().backward()
    assert grads["slot_attention.slots_mu"] is None
    for name, p in explicit.named_parameters():
        torch.testing.assert_close(grads[name], p.grad)
    assert not torch.allclose(grads["slot_attention.to_q.weight"], all_grads["slot_attention.to_q.weight"])


def test_positions_reach_the_slots():
    # With symmetric kernels, only the position embedding tells an image from its mirror image.
    model = ObjectDiscovery(TINY)
    for layer in model.encoder.convolutions:
        if hasattr(layer, "weight"):
            layer.weight.data += layer.weight.data.flip(3)
    images = torch.rand(1, 3, 11, 11)
    one, other = (model(x, generator=torch.Generator().manual_seed(0)).slots for x in (images, images.flip(3)))
    assert (one - other).abs().max() > 1e-3
    nn.init.zeros_(model.encoder.position_embedding.dense.weight)
    one, other = (model(x, generator=torch.Generator().manual_seed(0)).slots for x in (images, images.flip(3)))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "config",
    [DiscoveryConfig(), DiscoveryConfig(**PRESETS["discovery"]["clevr6"].model)],
    ids=["tetrominoes", "clevr6"],
)
def test_the_papers_sizes_take_a_training_step(config):
    torch.manual_seed(0)
    model = ObjectDiscovery(config).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-4)
    images = torch.rand(1, 3, config.image_size, config.image_size) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.mse_loss(model(images).reconstruction, images)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    before = [p.clone() for p in model.parameters()]
    optimizer.step()
    assert all((p != old).any() for p, old in zip(model.parameters(), before, strict=True))


def test_the_papers_sizes():
    # Weights and biases of Tables 3 to 6 and Algorithm 1, summed by hand.
    for config, encoder, attention, decoder in (
        (DiscoveryConfig(), 81_664, 50_176, 103_972),
        (DiscoveryConfig(**PRESETS["discovery"]["clevr6"].model), 321_024, 54_336, 514_948),
    ):
        model = ObjectDiscovery(config)
        parts = (model.encoder, model.slot_attention, model.decoder)
        assert [sum(p.numel() for p in part.parameters()) for part in parts] == [encoder, attention, decoder]
        size = config.image_size
        tokens = model.to("meta").encoder(torch.empty(1, 3, size, size, device="meta"))
        assert tokens.shape == (1, size**2, config.encoder_channels)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"num_slots": 0}, ValueError, "num_slots: got 0, expected at least 1"),
        ({"iters": -1}, ValueError, "iters: got -1, expected at least 0"),
        ({"slot_dim": 64.0}, TypeError, "slot_dim: got 64.0, expected an integer"),
        ({"encoder_strides": [1, 1]}, TypeError, r"encoder_strides: got \[1, 1\], expected a tuple"),
        ({"encoder_strides": (5, 4)}, ValueError, r"got \(5, 4\), expected none larger than .* is 3 wide for 4"),
        ({"decoder_strides": ()}, ValueError, r"decoder_strides: got \(\), expected at least one stride"),
        ({"decoder_strides": (6,)}, ValueError, r"decoder_strides: got \(6,\).*from 1 to 5"),
        ({"broadcast_size": 2}, ValueError, r"broadcast_size: got 2.*enlarge to 8, expected at least image_size=11"),
        ({"implicit": 1}, TypeError, "implicit: got 1, expected True or False"),
        ({"output_stride": 4}, ValueError, "output_stride: got 4, expected at most output_kernel=3"),
        ({"backend": "cuda"}, ValueError, "backend.*'cuda'"),
    ],
)
def test_bad_configuration(changes, error, says):
    with pytest.raises(error, match=says):
        ObjectDiscovery(dataclasses.replace(TINY, **changes))


@pytest.mark.parametrize("shape", [(2, 3, 35, 35), (2, 1, 11, 11), (3, 11, 11)])
def test_bad_images(shape):
    with pytest.raises(ValueError, match=r"images: got shape \(.*expected \[B, 3, 11, 11\]"):
        ObjectDiscovery(TINY)(torch.zeros(shape))
