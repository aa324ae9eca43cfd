"""The Triton kernels, in Triton's interpreter, against the float64 reference, by the table of the torch backend."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASES, HARD_INPUTS, Case, arguments, pair
from compare import assert_error_at_most_twice, normal, perturb, results
from slotattn_fast.kernels import ops
from slotattn_fast.kernels.launch import AttendConfig
from torch import Tensor

from slotattn_fast import SlotAttention, reference

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

    for name in ("attend_fwd_kernel", "attend_bwd_kernel", "attend_map_kernel"):
        kernel = getattr(ops, name)

        class Recorder:
            def __init__(self, kernel: Any, name: str) -> None:
                self.kernel, self.name = kernel, name

            def __getitem__(self, grid: Any) -> Any:
                names.append(self.name)
                return self.kernel[grid]

        monkeypatch.setattr(ops, name, Recorder(kernel, name))
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
    ran = case.batch > 0 and case.call.get("iters") != 0
    assert ("attend_fwd_kernel" in launched) == ran
    assert ("attend_bwd_kernel" in launched) == ran
    assert ("attend_map_kernel" in launched) == ("return_attn" in case.call)


@pytest.mark.parametrize("heads", [None, 3])
@pytest.mark.parametrize("hard", HARD_INPUTS.values(), ids=HARD_INPUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_the_references(
    dtype: torch.dtype, hard: Callable[[Tensor], Tensor], heads: int | None
) -> None:
    """As the test of that name of the torch backend, which also has the row left out here.

    Where all features of an input are equal, r is 316, and it enlarges the float32 rounding of sum w' x - sum w' mu to
    1e-5 of an offset of 10; the reference finds 0 there, so the rule allows nothing.
    """
    if dtype != torch.float32 and hard is HARD_INPUTS["equal-features-offset-10"]:
        pytest.skip("lies outside the rule in half precision")
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        expected = perturb(reference.SlotAttention(5, 24, input_dim=40, heads=heads), seed, 0.05).to(dtype)
        actual = SlotAttention(5, 24, input_dim=40, heads=heads, backend="triton").to(dtype)
        actual.load_state_dict(expected.state_dict())
        given = {
            "inputs": hard(normal(3, 301, 40, seed=seed)).to(dtype),
            "slots_init": normal(3, 5, 24, seed=5 + seed).to(dtype),
        }
        fast, plain = results(actual, **given), results(expected, **given)
        assert fast["output 0"].dtype == dtype
        found.append((fast, plain, results(expected.double(), **{name: x.double() for name, x in given.items()})))
    assert_error_at_most_twice(
        *({name: torch.stack([x[name] for x in part]) for name in part[0]} for part in zip(*found, strict=True))
    )
