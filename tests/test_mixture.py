"""The reconstruction loss by both backends against the plain formula in float64; kernels interpreted or on a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compare import DEVICE, Results, assert_error_at_most_twice, largest, normal
from slotattn_fast.kernels.launch import mixture_config
from torch import Tensor

from slotattn_fast.mixture import composite, reconstruct, reconstruction_loss

pytest.importorskip("triton")
from slotattn_fast.kernels import mixture_ops

backends = pytest.mark.parametrize("backend", ["torch", "triton"])
OPERATORS = torch.ops.slotattn_fast


@dataclass(frozen=True)
class Case:
    """One stressed axis; everything else is small, and no size is a power of two or fills its blocks."""

    id: str
    batch: int = 2
    num_slots: int = 5
    channels: int = 3
    height: int = 13
    width: int = 11
    logits: float = 1.0  # their scale
    layout: Callable[[Tensor], Tensor] = lambda x: x  # of the maps, from channels-last ones two pixels larger
    images_layout: Callable[[Tensor], Tensor] = lambda x: x.contiguous(memory_format=torch.channels_last)


def cut(x: Tensor) -> Tensor:
    return x[..., :-2, :-2]


def channels_last(x: Tensor) -> Tensor:
    """As a convolution leaves them."""
    return cut(x).flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])


def misaligned(x: Tensor) -> Tensor:
    """One element behind what an allocation is aligned to."""
    x = channels_last(x)
    memory = x.new_empty(x.numel() + 1)
    return torch.as_strided(memory, x.shape, x.stride(), 1).copy_(x)


CASES = [
    Case("channels-last", layout=channels_last),
    Case("cropped", layout=cut),
    Case("cropped-rows", layout=lambda x: channels_last(x)[..., :-3, :], height=10),
    Case("contiguous", layout=lambda x: cut(x).contiguous()),
    Case("transposed", layout=lambda x: cut(x).transpose(3, 4).contiguous().transpose(3, 4)),
    Case("expanded-slots", layout=lambda x: channels_last(x)[:, :1].expand(-1, 5, -1, -1, -1)),
    Case("expanded-pixels", layout=lambda x: cut(x)[..., :1, :1].expand(-1, -1, -1, 13, 11)),
    Case("every-other-slot", layout=lambda x: channels_last(x)[:, ::2], num_slots=3),
    Case("every-other-pixel", layout=lambda x: channels_last(x)[..., ::2], width=6),
    Case("every-fourth-pixel", layout=lambda x: cut(x).contiguous()[..., ::4], width=3),
    Case("overlapping-images", layout=lambda x: x.as_strided((2, 5, 4, 13, 11), (8, 660, 1, 44, 4))),
    Case("first-channels", layout=lambda x: channels_last(x)[:, :, :4]),
    Case("last-channels", layout=lambda x: channels_last(x)[:, :, 1:], channels=2),
    Case("misaligned", layout=misaligned),
    Case("images-contiguous", layout=channels_last, images_layout=lambda x: x.contiguous()),
    Case("images-expanded", layout=channels_last, images_layout=lambda x: x[:, :, :1, :1].expand(-1, -1, 13, 11)),
    Case("images-cropped", layout=channels_last, images_layout=lambda x: x.repeat(1, 1, 2, 2)[..., :13, :11]),
    *(Case(f"slots-{K}", layout=channels_last, num_slots=K) for K in (1, 2, 7, 8, 33, 64)),
    *(Case(f"channels-{C}", layout=channels_last, channels=C) for C in (1, 2, 4)),
    *(Case(f"channels-{C}-contiguous", layout=lambda x: cut(x).contiguous(), channels=C) for C in (1, 4)),
    Case("one-pixel", layout=channels_last, height=1, width=1),
    Case("one-column", layout=cut, width=1),
    Case("one-row", layout=cut, height=1),
    Case("one-image", layout=channels_last, batch=1),
    Case("one-image-one-slot", layout=channels_last, batch=1, num_slots=1),
    Case("pixels-256", layout=channels_last, height=16, width=16),
    Case("hard", layout=channels_last, logits=1e4),
]
# What a layout takes of the maps that it is given.
TAKEN = {"every-other-slot": {"num_slots": 5}, "every-other-pixel": {"width": 11}, "last-channels": {"channels": 3}}
TAKEN |= {"cropped-rows": {"height": 13}, "every-fourth-pixel": {"width": 12}, "first-channels": {"channels": 4}}


def given(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the layout is applied to [B, K, C + 1, H + 2, W + 2], in channels-last order, and images."""
    c = Case(**{**vars(case), **TAKEN.get(case.id, {})})
    maps = normal(c.batch, c.num_slots, c.channels + 1, c.height + 2, c.width + 2)
    maps[:, :, -1] *= c.logits
    images = normal(case.batch, case.channels, case.height, case.width, seed=1).float()
    maps = maps.to(dtype).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return maps.unflatten(0, (c.batch, c.num_slots)), case.images_layout(images)


def results(
    loss: Callable[[Tensor, Tensor], Tensor], maps: Tensor, images: Tensor, layout: Callable[[Tensor], Tensor]
) -> Results:
    """The loss and its gradients, which are multiplied with the number of elements so that all are about 1."""
    maps, images = (x.detach().requires_grad_() for x in (maps, images))
    value = loss(layout(maps), images)
    d_maps, d_images = torch.autograd.grad(value * images.numel(), (maps, images))
    return {"loss": value.detach(), "gradient to maps": d_maps, "gradient to images": d_images}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were launched; what they are to write is NaN beforehand."""
    names: list[str] = []

    class Recorder:
        def __init__(self, kernel: Any, name: str) -> None:
            self.kernel, self.name = kernel, name

        def __getitem__(self, grid: Any) -> Any:
            names.append(self.name)
            return self.kernel[grid]

    for name in ("mixture_loss_fwd_kernel", "mixture_loss_bwd_kernel"):
        monkeypatch.setattr(mixture_ops, name, Recorder(getattr(mixture_ops, name), name))
    new_empty, empty_like = Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(torch.nan))
    return names


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_error_is_at_most_twice_that_of_the_formula(
    case: Case, dtype: torch.dtype, backend: str, launched: list[str]
) -> None:
    """The formula in float32, with the gradient rounded to the type of the maps."""
    maps, images = given(case, dtype)
    found = results(lambda x, y: reconstruction_loss(x, y, backend), maps, images, case.layout)
    plain = results(composite, maps, images, case.layout)
    exact = results(composite, maps.double(), images.double(), case.layout)
    assert found["loss"].dtype == torch.float32
    assert found["gradient to maps"].dtype == dtype
    assert_error_at_most_twice(found, plain, exact)
    assert launched == (["mixture_loss_fwd_kernel", "mixture_loss_bwd_kernel"] if backend == "triton" else [])


def test_the_formula_is_that_of_the_paper() -> None:
    """As the auto-encoder and its loss have it; `composite` is what everything here is held against."""
    maps, images = normal(2, 5, 4, 6, 7), normal(2, 3, 6, 7, seed=1)
    masks, rgb = maps[:, :, 3:].softmax(1), maps[:, :, :3]
    torch.testing.assert_close(reconstruct(maps), (masks * rgb).sum(1))
    torch.testing.assert_close(composite(maps, images), F.mse_loss((masks * rgb).sum(1), images))


def pair(dtype: torch.dtype = torch.float32, batch: int = 2, size: int = 13) -> tuple[Tensor, Tensor]:
    """Channels-last maps of 5 slots and images of 3 channels."""
    case = Case("", batch=batch, height=size, width=size, layout=channels_last)
    maps, images = given(case, dtype)
    return channels_last(maps), images


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("num_slots", [1, 2, 3, 5, 9, 17, 33])
def test_every_launch_configuration(num_slots: int, channels: int) -> None:
    """Two programs an image, the last not full; what the compiler makes of them depends on the sizes of the blocks."""
    width = mixture_config(num_slots, channels).block_n // 8 + 1
    case = Case("", num_slots=num_slots, channels=channels, height=9, width=width, layout=channels_last)
    maps, images = given(case, torch.float32)
    found = results(lambda x, y: reconstruction_loss(x, y, "triton"), maps, images, channels_last)
    plain, exact = (results(composite, x, y, channels_last) for x, y in ((maps, images), (maps.double(), images)))
    assert_error_at_most_twice(found, plain, exact)


@pytest.mark.parametrize("warp_size", [32, 64])
def test_launch_configurations(warp_size: int) -> None:
    for num_slots in range(1, 65):
        for channels in range(1, 5):
            c = mixture_config(num_slots, channels, warp_size)
            assert num_slots <= c.block_k < 2 * num_slots
            assert c.num_warps in (1, 2, 4, 8, 16)
            assert c.block_n >= 32
            assert c.block_n * c.block_k * (channels + 1) <= 32 * warp_size * c.num_warps


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_lies_as_the_maps_do(dtype: torch.dtype, backend: str) -> None:
    """So that the backward pass of the convolution that made them takes it without a copy."""
    maps, images = pair(dtype)
    grad = getattr(OPERATORS, f"{backend}_mixture_backward")(torch.ones((), device=DEVICE), maps, images)
    assert (grad.stride(), grad.dtype) == (maps.stride(), dtype)
    assert grad.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    before_unflatten = maps.flatten(0, 1).detach().requires_grad_()
    reconstruction_loss(before_unflatten.unflatten(0, maps.shape[:2]), images, backend).backward()
    assert before_unflatten.grad is not None
    assert torch.equal(before_unflatten.grad.unflatten(0, maps.shape[:2]), grad)


@pytest.mark.parametrize(("channels", "together"), [(1, 2), (2, 1), (3, 4), (4, 1)])
def test_channels_that_lie_together_are_moved_together(channels: int, together: int) -> None:
    maps = normal(2, 3, channels + 1, 7, 7).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    maps = maps.unflatten(0, (2, 3))
    assert mixture_ops._together(maps) == mixture_ops._together(maps[..., 1:5, :5]) == together
    assert mixture_ops._together(maps.contiguous()) == 1


@backends
def test_nothing_else_is_kept(backend: str) -> None:
    maps, images = pair()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        reconstruction_loss(maps.requires_grad_(), images, backend)
    assert [x.data_ptr() for x in kept] == [maps.data_ptr(), images.data_ptr()]


@backends
def test_twice_the_same_to_the_bit(backend: str) -> None:
    maps, images = pair(size=40)
    first, second = (
        results(lambda x, y: reconstruction_loss(x, y, backend), maps, images, lambda x: x) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@backends
def test_no_image(backend: str, launched: list[str]) -> None:
    maps, images = (x.requires_grad_() for x in pair(batch=0))
    loss = reconstruction_loss(maps, images, backend)
    assert loss.isnan()
    d_maps, d_images = torch.autograd.grad(loss, (maps, images))
    assert (d_maps.shape, d_images.shape) == (maps.shape, images.shape)
    assert not launched


@backends
def test_nan_in_one_image_leaves_the_others_untouched(backend: str) -> None:
    maps, images = pair(batch=4)
    backward = getattr(OPERATORS, f"{backend}_mixture_backward")
    one = torch.ones((), device=DEVICE)
    clean = backward(one, maps, images)
    maps[2, 3, 1, 4, 5] = torch.nan
    found = backward(one, maps, images)
    assert found[2, :, :, 4, 5].isnan().any()
    assert torch.equal(found[[0, 1, 3]], clean[[0, 1, 3]])


@backends
def test_a_slot_with_a_logit_of_minus_infinity_draws_nothing(backend: str) -> None:
    maps, images = pair()
    maps[:, 2, -1] = -torch.inf
    others = maps[:, [0, 1, 3, 4]]
    found = results(lambda x, y: reconstruction_loss(x, y, backend), maps, images, lambda x: x)
    expected = results(composite, others, images, lambda x: x)
    torch.testing.assert_close(found["loss"], expected["loss"])
    torch.testing.assert_close(found["gradient to maps"][:, [0, 1, 3, 4]], expected["gradient to maps"])
    assert largest(found["gradient to maps"][:, 2]) == 0


@backends
def test_the_incoming_gradient_may_be_part_of_another(backend: str) -> None:
    """A scalar in the middle of a tensor, and one expanded from a scalar."""
    maps, images = pair()
    backward = getattr(OPERATORS, f"{backend}_mixture_backward")
    threes = torch.arange(5.0, device=DEVICE)[3], torch.full((1,), 3.0, device=DEVICE).expand(7)[4]
    expected = backward(torch.full((), 3.0, device=DEVICE), maps, images)
    assert all(torch.equal(backward(three, maps, images), expected) for three in threes)


def test_offsets_beyond_int32() -> None:
    """Slots so far apart, by strides, that their offsets pass 2^31."""
    # Touched in few places, so that it takes little memory on a CPU.
    storage = torch.empty(2**31 + 2**20, dtype=torch.float16, device=DEVICE)
    apart = storage.as_strided((1, 3, 4, 5, 7), (0, 2**30, 1, 28, 4))
    apart.copy_(normal(1, 3, 4, 5, 7))
    images = normal(1, 3, 5, 7, seed=1).float()
    for maps in (apart, apart[:, :, 1:]):  # moved together, and one by one
        these = images[:, : maps.shape[2] - 1]
        together = maps.clone(memory_format=torch.contiguous_format)
        one = torch.ones((), device=DEVICE)
        assert torch.equal(OPERATORS.triton_mixture(maps, these), OPERATORS.triton_mixture(together, these))
        found, expected = (OPERATORS.triton_mixture_backward(one, x, these) for x in (maps, together))
        assert torch.equal(found, expected)
