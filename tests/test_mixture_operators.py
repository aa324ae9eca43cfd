"""The reconstruction loss under PyTorch's transformations, its choice of a backend and its errors."""

from importlib import metadata
from typing import Any

import pytest
import torch
from compare import DEVICE, normal
from slotattn_fast.kernels import support
from torch import Tensor
from torch.autograd import forward_ad

from slotattn_fast.mixture import composite, explain_mixture_backend, reconstruction_loss

pytest.importorskip("triton")
backends = pytest.mark.parametrize("backend", ["torch", "triton"])
OPERATORS = torch.ops.slotattn_fast


def pair(dtype: torch.dtype = torch.float32, batch: int = 2, size: int = 6) -> tuple[Tensor, Tensor]:
    """Channels-last maps of 5 slots and images of 3 channels."""
    maps = normal(batch * 5, 4, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
    return maps.unflatten(0, (batch, 5)), normal(batch, 3, size, size, seed=1).float()


def loss_and_gradients(function: Any, maps: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    maps, images = (x.detach().requires_grad_() for x in (maps, images))
    loss = function(maps, images)
    return loss.detach(), *torch.autograd.grad(3 * loss, (maps, images))


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_are_registered_right(dtype: torch.dtype, backend: str) -> None:
    """opcheck: the schema tells of no aliasing or mutation that is not there; fake tensors get shapes and strides."""
    maps, images = pair(dtype)
    cropped = maps[..., :-1, :-2]
    for x in (maps, maps.contiguous(), cropped):
        y = images[..., : x.shape[3], : x.shape[4]]
        d_loss = torch.ones((), device=DEVICE)
        torch.library.opcheck(getattr(OPERATORS, f"{backend}_mixture").default, (x.detach().requires_grad_(), y))
        torch.library.opcheck(getattr(OPERATORS, f"{backend}_mixture_backward").default, (d_loss, x, y))


@backends
@pytest.mark.parametrize("images_too", [False, True])
def test_compiles_whole_with_its_backward(backend: str, images_too: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(reconstruction_loss, fullgraph=True, backend="aot_eager")
    maps, images = pair()
    wanted = [x.requires_grad_() for x in ((maps, images) if images_too else (maps,))]
    found, expected = (
        torch.autograd.grad(function(maps, images, backend), wanted) for function in (compiled, reconstruction_loss)
    )
    for x, want in zip(found, expected, strict=True):
        torch.testing.assert_close(x, want)
        assert x.stride() == want.stride()


@backends
def test_one_graph_serves_every_size(backend: str) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(reconstruction_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, size in ((2, 6), (3, 9), (5, 7)):
        maps, images = pair(batch=batch, size=size)
        found = loss_and_gradients(lambda x, y: compiled(x, y, backend), maps, images)
        torch.testing.assert_close(found, loss_and_gradients(composite, maps, images))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@backends
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_changes_nothing(compiled: bool, backend: str) -> None:
    maps, images = pair(torch.bfloat16)
    torch.compiler.reset()
    function = (
        torch.compile(reconstruction_loss, fullgraph=True, backend="aot_eager") if compiled else (reconstruction_loss)
    )
    expected = loss_and_gradients(lambda x, y: reconstruction_loss(x, y, backend), maps, images)
    with torch.autocast(DEVICE, torch.bfloat16):
        found = loss_and_gradients(lambda x, y: function(x, y, backend), maps, images)
    assert found[0].dtype == torch.float32
    assert all(torch.equal(x, want) for x, want in zip(found, expected, strict=True))


def test_gradients_and_second_derivatives_in_float64() -> None:
    maps, images = pair(torch.float64, size=3)
    given = maps.requires_grad_(), images.double().requires_grad_()
    assert reconstruction_loss(*given).dtype == torch.float64
    assert torch.autograd.gradcheck(reconstruction_loss, given)
    assert torch.autograd.gradgradcheck(reconstruction_loss, given)


def test_second_derivatives_of_the_kernels() -> None:
    found = []
    for function in (lambda x, y: reconstruction_loss(x, y, "triton"), composite):
        maps, images = (x.requires_grad_() for x in pair())
        first = torch.autograd.grad(function(maps, images), (maps, images), create_graph=True)
        found.append(torch.autograd.grad(sum(x.square().sum() for x in first), (maps, images)))
    torch.testing.assert_close(*found)


@backends
def test_batched_gradients_and_transforms_of_torch_func(backend: str) -> None:
    maps, images = pair()
    maps.requires_grad_()
    loss = reconstruction_loss(maps, images, backend)
    weights = torch.tensor([1.0, -2.0], device=DEVICE)
    (batched,) = torch.autograd.grad(loss, maps, weights, is_grads_batched=True, retain_graph=True)
    (grad,) = torch.autograd.grad(loss, maps)
    torch.testing.assert_close(batched, weights[:, None, None, None, None, None] * grad)
    maps = maps.detach()
    by_func = torch.func.grad(lambda x: reconstruction_loss(x, images, backend))(maps)
    torch.testing.assert_close(by_func, grad)
    each = torch.func.vmap(lambda x, y: reconstruction_loss(x[None], y[None], backend))(maps, images)
    torch.testing.assert_close(each.mean(), loss.detach())


@backends
def test_forward_mode_derivatives(backend: str) -> None:
    """Compiled too; an operator would drop them in silence."""
    maps, images = pair()
    tangents = normal(*maps.shape, seed=8).float()
    want = (torch.func.grad(lambda x: composite(x, images))(maps) * tangents).sum()

    def along(x: Tensor, y: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: reconstruction_loss(x, images, backend), (x,), (y,))[1]

    torch.compiler.reset()
    for function in (along, torch.compile(along, backend="eager")):
        torch.testing.assert_close(function(maps, tangents), want)
    with forward_ad.dual_level():
        loss = reconstruction_loss(forward_ad.make_dual(maps, tangents), images, backend)
        torch.testing.assert_close(forward_ad.unpack_dual(loss).tangent, want)


@backends
def test_only_the_images_need_a_gradient(backend: str) -> None:
    maps, images = pair(torch.bfloat16)
    images.requires_grad_()
    (found,) = torch.autograd.grad(reconstruction_loss(maps, images, backend), images)
    (expected,) = torch.autograd.grad(composite(maps, images), images)
    torch.testing.assert_close(found, expected)


def test_images_in_half_precision() -> None:
    maps, images = pair(torch.float16)
    for backend in ("torch", "triton"):
        found = loss_and_gradients(lambda x, y: reconstruction_loss(x, y, backend), maps, images.half())  # noqa: B023
        torch.testing.assert_close(found, loss_and_gradients(composite, maps, images.half()))


def test_auto_takes_torch_on_a_cpu_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.zeros(2, 3, 4, 5, 5)
    for interpreted in ("0", "1"):
        monkeypatch.setenv("TRITON_INTERPRET", interpreted)
        backend = explain_mixture_backend(maps)
        assert backend.name == "torch"
        assert "the maps are on 'cpu'" in backend.reason
    assert explain_mixture_backend(maps, "torch").name == "torch"
    assert explain_mixture_backend(maps, "triton").name == "triton"


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (torch.zeros(1, 65, 4, 2, 2), "the maps are of 65 slots, and the kernels take 64 at most"),
        (torch.zeros(1, 2, 6, 2, 2), "the images have 5 channels, and the kernels take 4 at most"),
        (torch.zeros(1, 2, 4, 2, 2, dtype=torch.float64), "the maps are torch.float64, .* in float32"),
        (torch.zeros(1, 2, 4, 2, 2, device="meta"), "the maps are on 'meta', .* CUDA or ROCm device"),
    ],
)
def test_what_the_kernels_do_not_serve(maps: Tensor, message: str) -> None:
    """Named, they raise with the reason; "auto" takes the other backend."""
    images = maps.new_zeros(1, maps.shape[2] - 1, 2, 2)
    with pytest.raises(RuntimeError, match=f'backend="triton" cannot serve this call: {message}; use backend='):
        reconstruction_loss(maps, images, "triton")
    assert explain_mixture_backend(maps).name == "torch"
    assert reconstruction_loss(maps, images).shape == ()


def test_what_the_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    assert support.why_not_mixture("cuda", torch.bfloat16, 64, 4) is None
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "'cpu'" in (support.why_not_mixture("cpu", torch.bfloat16, 64, 4) or "")
    monkeypatch.setattr(metadata, "version", lambda name: "3.5.9")
    support._why_not_installed.cache_clear()
    assert "Triton 3.5.9 is installed" in (support.why_not_mixture("cuda", torch.bfloat16, 7, 3) or "")
    support._why_not_installed.cache_clear()


@pytest.mark.parametrize(
    ("maps", "images", "error", "message"),
    [
        (3, torch.zeros(1), TypeError, r"maps must be a tensor \[B, K, C \+ 1, H, W\], got int"),
        (torch.zeros(2, 3, 4, 5, 5), None, TypeError, r"images must be a tensor \[B, C, H, W\], got NoneType"),
        (torch.zeros(3, 4, 5, 5), torch.zeros(2, 3, 5, 5), ValueError, r"maps must have shape .* got \[3, 4, 5, 5\]"),
        (torch.zeros(2, 3, 1, 5, 5), torch.zeros(2, 0, 5, 5), ValueError, "maps must have .* K and C at least 1"),
        (torch.zeros(2, 0, 4, 5, 5), torch.zeros(2, 3, 5, 5), ValueError, "maps must have .* K and C at least 1"),
        (
            torch.zeros(2, 3, 4, 5, 5),
            torch.zeros(2, 3, 5, 6),
            ValueError,
            r"images must have shape \[2, 3, 5, 5\] for maps of \[2, 3, 4, 5, 5\], got \[2, 3, 5, 6\]",
        ),
        (torch.zeros(2, 3, 4, 5, 5).int(), torch.zeros(2, 3, 5, 5), TypeError, "maps must be .*, got torch.int32"),
        (
            torch.zeros(2, 3, 4, 5, 5),
            torch.zeros(2, 3, 5, 5).byte(),
            TypeError,
            "images must be torch.float32 or torch.float32 as maps is, got torch.uint8",
        ),
        (
            torch.zeros(2, 3, 4, 5, 5),
            torch.zeros(2, 3, 5, 5, device="meta"),
            ValueError,
            "images must be on cpu as maps is, got meta",
        ),
    ],
)
def test_errors(maps: Any, images: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        reconstruction_loss(maps, images)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', 'triton', 'torch', got 'cuda'"):
        reconstruction_loss(*pair(), backend="cuda")
