"""The Triton kernels, interpreted or on a GPU, against the float64 reference, by the table of the torch backend."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASES, Case, arguments, pair
from compare import DEVICE, assert_error_at_most_twice, largest, normal, perturb, results
from slotattn_fast.kernels import ops, slot_ops
from slotattn_fast.kernels.arguments import Settings
from slotattn_fast.kernels.launch import AttendConfig, update_serves
from torch import Tensor

from slotattn_fast import SlotAttention, torch_backend, triton_backend
from slotattn_fast.functional import NOT_ITERATED
from slotattn_fast.slot_update import fold

KERNELS = [
    (ops, "attend_fwd_kernel"),
    (ops, "attend_bwd_kernel"),
    (ops, "attend_map_kernel"),
    (slot_ops, "absorb_fwd_kernel"),
    (slot_ops, "absorb_bwd_kernel"),
    (slot_ops, "query_fwd_kernel"),
    (slot_ops, "update_fwd_kernel"),
    (slot_ops, "update_bwd_kernel"),
    (slot_ops, "query_bwd_kernel"),
]
NOT_SERVED = {"sum_norm", "inputs"}
SERVED = [
    *(case for case in CASES if not NOT_SERVED & set(case.options.values()) and case.id != "inputs-4096"),
    Case("slots-40-heads-1", num_slots=40, num_inputs=50),
    Case("slots-16", num_slots=16, num_inputs=50),
    Case("inputs-16-wide", {"input_dim": 16}),
    Case("inputs-48-wide", {"input_dim": 48}),
    Case("inputs-96-wide", {"input_dim": 96}),
    Case("inputs-192-wide", {"input_dim": 192}),
    Case("inputs-256-wide", {"input_dim": 256}),
    Case("inputs-500-wide", {"input_dim": 500}),
]


@pytest.fixture
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 inputs, two to a program; of 128 where there are many inputs."""
    original = ops.attend_config

    def config(B: int, N: int, *others: Any) -> AttendConfig:
        block_n = 16 if N < 1000 else 128
        tiles = -(-N // block_n)
        return original(B, N, *others)._replace(block_n=block_n, blocks=2, splits=-(-tiles // 2))

    monkeypatch.setattr(ops, "attend_config", config)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were launched; what they are to write is NaN beforehand."""
    names: list[str] = []

    def poisoned(x: Any) -> Any:
        return x.fill_(torch.nan) if x.is_floating_point() else x

    class Recorder:
        def __init__(self, kernel: Any, name: str) -> None:
            self.kernel, self.name = kernel, name

        def __getitem__(self, grid: Any) -> Any:
            names.append(self.name)
            return self.kernel[grid]

    for module, name in KERNELS:
        monkeypatch.setattr(module, name, Recorder(getattr(module, name), name))
    new_empty, empty = Tensor.new_empty, torch.empty
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: poisoned(new_empty(*a, **k)))
    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    return names


def float32(case: Case) -> dict[str, Any]:
    """The arguments of a call, in float32."""
    given = arguments(case)
    return {name: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in given.items()}


@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.id)
def test_equals_the_reference(case: Case, launched: list[str], many_blocks: None) -> None:
    case = replace(case, slots_given=True)  # draws differ between float32 and float64
    actual, expected = pair(case, "triton")
    exact = results(expected, **arguments(case))
    found = results(actual.float(), **float32(case))
    plain = results(expected.float(), **float32(case))
    assert_error_at_most_twice(found, plain, exact, floor=5e-6)  # of a single draw, in which any is lucky or not
    T = case.call.get("iters", 3) if case.batch else 0
    served = update_serves(case.dim, case.options.get("input_dim", case.dim), 128, case.options.get("heads", 1))
    fused = served and T > 0
    absorbed = served and (case.options.get("use_gru", True) or "heads" in case.options)
    maps = {"all": T, True: 1, "last": 1, False: 0}[case.call.get("return_attn", False)]
    assert Counter(launched) == Counter(
        attend_fwd_kernel=T,
        attend_bwd_kernel=T,
        attend_map_kernel=maps,
        absorb_fwd_kernel=absorbed,
        absorb_bwd_kernel=absorbed,
        query_fwd_kernel=fused,
        update_fwd_kernel=fused * T,
        update_bwd_kernel=fused * T,
        query_bwd_kernel=fused,
    )


def test_twice_the_same_to_the_bit(many_blocks: None) -> None:
    module = perturb(SlotAttention(7, 24, heads=2, backend="triton").to(DEVICE))
    given = {"inputs": normal(3, 301, 24).float(), "slots_init": normal(3, 7, 24, seed=5).float()}
    first, second = (results(module, **given, return_attn=True) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_offsets_beyond_int32() -> None:
    """Rows so far apart, by strides, that their offsets pass 2^31."""
    module = perturb(SlotAttention(3, 16, backend="triton").to(DEVICE))
    slots_init = normal(1, 3, 16, seed=5).float()
    # Touched in few places, so that it takes little memory on a CPU.
    storage = torch.empty(2**31 + 2**20, dtype=torch.float16, device=DEVICE)
    apart = storage.as_strided((1, 3, 16), (0, 2**30, 1))
    apart.copy_(normal(1, 3, 16))
    module.half()
    with torch.no_grad():
        found = module(apart, slots_init=slots_init.half())
        expected = module(apart.contiguous(), slots_init=slots_init.half())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_gradients_of_any_size(dtype: torch.dtype) -> None:
    """Incoming gradients of 1e-6 are counted in units of their largest, as float16 would lose them otherwise."""
    module = SlotAttention(5, 24, backend="triton").to(DEVICE, dtype)
    inputs, slots_init = normal(2, 61, 24).to(dtype), normal(2, 5, 24, seed=5).to(dtype)
    grads = []
    for scale in (1.0, 2.0**-20):
        slots = module(inputs, slots_init=slots_init)
        grads.append(torch.autograd.grad(slots.float().sum() * scale, module.to_k.weight)[0].float() / scale)
    assert largest(grads[0] - grads[1]) < 0.1 * largest(grads[0])


def test_second_derivatives_are_those_of_the_torch_backend() -> None:
    found = []
    for backend in ("triton", "torch"):
        torch.manual_seed(0)
        module = SlotAttention(2, 8, backend=backend).to(DEVICE)
        x = normal(2, 5, 8).float().requires_grad_()
        slots = module(x, slots_init=normal(2, 2, 8, seed=5).float())
        (first,) = torch.autograd.grad(slots.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sums_are_those_of_the_torch_backend(dtype: torch.dtype) -> None:
    """E itself, at an offset of 10: what is constant over D_in in it would be lost in the centred value weights."""
    module = SlotAttention(5, 24).to(DEVICE)
    params = {name: p.detach() for name, p in module.named_parameters() if name not in NOT_ITERATED}
    inputs, slots = (normal(2, 61, 24) + 10).to(dtype), normal(2, 5, 24, seed=5).to(dtype)
    s = Settings(3, 1, 1e-8, 1e-5, "mean", "numerator", True)
    with torch.no_grad():
        _, found, *_ = triton_backend.forward(inputs, slots, None, None, fold(params, slots, 1, 24**-0.5), s)
        _, want = torch_backend.forward(inputs, slots, None, None, fold(params, slots, 1, 24**-0.5), s)
    assert largest(found - want) < (1e-2 if dtype == torch.float16 else 1e-5) * largest(want[..., :-1])
