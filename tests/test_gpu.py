"""What only a GPU shows, whole calls of the Triton backend: CUDA graphs, Inductor, autocast, repetition, size.

TRITON_INTERPRET=0 pytest -m gpu tests/test_gpu.py
"""

from typing import Any

import pytest
import torch
from compare import DEVICE, assert_error_at_most_twice, assert_same, normal, perturb, results
from torch import Tensor

from benchmarks.measure import captured
from slotattn_fast import SlotAttention, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE != "cuda", reason="no GPU, or TRITON_INTERPRET is not 0"),
]


def made(dtype: torch.dtype = torch.float32) -> SlotAttention:
    torch.manual_seed(0)
    module = perturb(SlotAttention(7, 64, backend="triton")).to(DEVICE, dtype)
    assert isinstance(module, SlotAttention)
    return module


def given(dtype: torch.dtype = torch.float32, num_inputs: int = 4099) -> dict[str, Tensor]:
    return {"inputs": normal(3, num_inputs, 64, dtype=dtype), "slots_init": normal(3, 7, 64, seed=5, dtype=dtype)}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward-backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graph_replays_what_eager_computes(dtype: torch.dtype, backward: bool) -> None:
    """For other inputs than those of the capture, written into the same memory."""
    module, tensors = made(dtype), given(dtype)
    inputs = tensors["inputs"].requires_grad_()
    params = [p for name, p in module.named_parameters() if name not in ("slots_mu", "slots_logsigma")]

    def call() -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            slots = module(**tensors)
        grads = torch.autograd.grad(slots.square().sum(), [inputs, *params]) if backward else ()
        return [slots.detach(), *grads]

    replay = captured(call)
    with torch.no_grad():
        inputs.copy_(normal(*inputs.shape, seed=9, dtype=dtype))
    assert all(torch.equal(x, y) for x, y in zip(replay(), call(), strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_tensors_of_another_gpu_than_the_current_one() -> None:
    def results_on(device: str) -> list[Tensor]:
        module, tensors = made().to(device), {name: x.to(device) for name, x in given().items()}
        slots = module(**tensors)
        return [slots.detach(), *torch.autograd.grad(slots.square().sum(), [module.gru.weight_hh, module.to_k.weight])]

    on_first, on_second = results_on("cuda:0"), results_on("cuda:1")
    assert torch.cuda.current_device() == 0
    for x, want in zip(on_second, on_first, strict=True):
        assert torch.equal(x.to("cuda:0"), want)


def test_graph_draws_new_slots_at_every_replay() -> None:
    module, inputs = made(), given()["inputs"]

    def call() -> list[Tensor]:
        with torch.no_grad():
            return [module(inputs)]

    replay = captured(call)
    first, second = (replay()[0].clone() for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    (drawn,) = replay()
    torch.manual_seed(3)
    assert torch.equal(drawn, call()[0])


def test_a_graphed_callable_trains_as_the_module_does() -> None:
    """torch.cuda.make_graphed_callables: graphs of one module in an eager loop, forward and backward."""
    module, inputs = made(), given()["inputs"]
    graphed = torch.cuda.make_graphed_callables(made(), (torch.empty_like(inputs).normal_(),))

    def trained(call: SlotAttention) -> list[Tensor]:
        torch.manual_seed(3)
        slots = call(inputs)
        call.zero_grad()
        slots.square().sum().backward()
        return [slots.detach(), *(p.grad.clone() for p in call.parameters() if p.grad is not None)]

    for _ in range(2):
        found, expected = trained(graphed), trained(module)
        assert len(found) == len(expected) > 10
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"dynamic": True}, {"mode": "reduce-overhead"}], ids=["default", "dynamic", "cuda-graphs"]
)
def test_compiles_whole_by_inductor(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Called often enough for the compiler's own CUDA graphs to be replayed, and with another number of inputs."""
    module = made(dtype)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, **options)
    for num_inputs in (4099, 4099, 4099, 1000):
        tensors = given(dtype, num_inputs)
        found = {name.replace("_orig_mod.", ""): x for name, x in results(compiled, **tensors).items()}
        assert_same(found, results(module, **tensors), 1e-4 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_takes_half_inputs_and_float32_parameters(dtype: torch.dtype) -> None:
    """At most twice the error of the reference under the same autocast."""
    module = made()
    expected = reference.SlotAttention(7, 64).to(DEVICE)
    expected.load_state_dict(module.state_dict())
    tensors = given() | {"inputs": given(dtype)["inputs"]}
    exact = results(expected.double(), **{name: x.double() for name, x in tensors.items()})
    with torch.autocast("cuda", dtype):
        fast, plain = results(module, **tensors), results(expected.float(), **tensors)
    assert fast["gradient to inputs"].dtype == dtype
    assert fast["gradient to to_q.weight"].dtype == torch.float32
    assert_error_at_most_twice(fast, plain, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_hundred_runs_are_equal_to_the_bit(dtype: torch.dtype) -> None:
    module, tensors = made(dtype), given(dtype, num_inputs=16384)
    first = results(module, **tensors, return_attn=True)
    for _ in range(99):
        again = results(module, **tensors, return_attn=True)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_more_than_2_to_the_31_elements() -> None:
    """The last images, whose offsets pass 2^31, are as they are alone; 9 GB of inputs and their gradient."""
    module = made(torch.bfloat16)
    B, N, last = 2050, 16384, slice(-3, None)
    generator = torch.Generator(DEVICE).manual_seed(0)
    inputs = torch.randn(B, N, 64, dtype=torch.bfloat16, device=DEVICE, generator=generator).requires_grad_()
    assert inputs.numel() > 2**31
    slots_init = normal(1, 7, 64, seed=5, dtype=torch.bfloat16).expand(B, -1, -1)
    slots, attn = module(inputs, slots_init=slots_init, return_attn=True)
    (d_inputs,) = torch.autograd.grad(slots.square().sum(), inputs)
    few = inputs.detach()[last].clone().requires_grad_()
    want, want_attn = module(few, slots_init=slots_init[last], return_attn=True)
    (d_few,) = torch.autograd.grad(want.square().sum(), few)
    found = {"slots": slots[last], "attention": attn[last], "gradient": d_inputs[last]}
    assert_same(found, {"slots": want, "attention": want_attn, "gradient": d_few}, 2e-2)  # other splits, so other sums
