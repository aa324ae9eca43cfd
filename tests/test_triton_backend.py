"""The Triton kernels, interpreted or on a GPU, against the float64 reference, by the table of the torch backend."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASES, HARD_INPUTS, Case, arguments, assert_errors_like_the_references, pair, some
from compare import DEVICE, assert_error_at_most_twice, largest, normal, perturb, results
from slotattn_fast.kernels import ops, slot_ops
from slotattn_fast.kernels.arguments import Settings
from slotattn_fast.kernels.device import hopper
from slotattn_fast.kernels.launch import (
    AttendConfig,
    CallConfig,
    call_config,
    fits_on_chip,
    images_in_cache,
    iterations_at_once,
    update_serves,
)
from torch import Tensor

from slotattn_fast import SlotAttention, reference, torch_backend, triton_backend
from slotattn_fast.functional import NOT_ITERATED
from slotattn_fast.slot_update import fold

KERNELS = [
    (ops, "attend_fwd_kernel"),
    (ops, "attend_bwd_kernel"),
    (ops, "attend_map_kernel"),
    (slot_ops, "on_chip_fwd_kernel"),
    (slot_ops, "absorb_fwd_kernel"),
    (slot_ops, "absorb_bwd_kernel"),
    (slot_ops, "query_fwd_kernel"),
    (slot_ops, "update_fwd_kernel"),
    (slot_ops, "update_bwd_kernel"),
    (slot_ops, "query_bwd_kernel"),
]
needs_hopper = pytest.mark.skipif(not hopper(torch.device(DEVICE)), reason="no GPU of the Hopper generation")
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


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Callable[[CallConfig], None]:
    """Has the calls that follow use another order than the one they would choose."""
    return lambda config: monkeypatch.setattr(triton_backend, "call_config", lambda B: config)


def converted(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of a call, the floating-point ones in another type."""
    given = arguments(case)
    return {name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in given.items()}


def smooth(case: Case) -> tuple[SlotAttention, reference.SlotAttention]:
    """Both modules in float64 with the same weights, none of them 0 or 1, and none large.

    Larger ones magnify rounding hundreds of times, and mostly along one direction, so that of two errors of a kind one
    is often more than twice the other.
    """
    actual, expected = pair(case, "triton")
    torch.manual_seed(0)
    weights = perturb(
        reference.SlotAttention(case.num_slots, case.dim, **case.options).double(), size=0.05
    ).state_dict()
    for module in (actual, expected):
        module.load_state_dict(weights)
    return actual, expected


@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.id)
def test_equals_the_reference(case: Case, launched: list[str], many_blocks: None) -> None:
    case = replace(case, slots_given=True)  # draws differ between float32 and float64
    actual, expected = smooth(case)
    exact = results(expected, **arguments(case))
    found = results(actual.float(), **converted(case, torch.float32))
    plain = results(expected.float(), **converted(case, torch.float32))
    assert_error_at_most_twice(found, plain, exact)
    iters = case.call.get("iters", 3)
    T = iters if case.batch else 0
    input_dim, heads = case.options.get("input_dim", case.dim), case.options.get("heads", 1)
    last = ops.attend_config(case.batch, case.num_inputs, input_dim, case.num_slots, heads, 4, 1, "inputs")
    parts = -(-T // iterations_at_once(last, 4))  # of the last pass
    served = update_serves(case.dim, input_dim, 128, heads)
    fused = served and T > 0
    absorbed = served and (case.options.get("use_gru", True) or "heads" in case.options)
    maps = {"all": T, True: 1, "last": 1, False: 0}[case.call.get("return_attn", False)]
    assert Counter(launched) == Counter(
        attend_fwd_kernel=T,
        attend_bwd_kernel=T - 1 + parts if T else 0,
        attend_map_kernel=maps,
        absorb_fwd_kernel=absorbed,
        absorb_bwd_kernel=absorbed and iters > 0,
        query_fwd_kernel=fused,
        update_fwd_kernel=fused * T,
        update_bwd_kernel=fused * T,
        query_bwd_kernel=fused,
    )


GROUPED = ("plain", "no-image", "heads", "both-masks", "no-mlp", "feature-map", "expanded-gradients-all-slots")
GROUPED += ("inputs-192-wide",)


@pytest.mark.parametrize("case", [case for case in SERVED if case.id in GROUPED], ids=lambda case: case.id)
def test_groups_of_images(
    case: Case, configured: Callable[[CallConfig], None], launched: list[str], many_blocks: None
) -> None:
    """Two groups, of two images and one: as without groups, to the bit but for the sums over all images.

    8 slots, as NumPy's product of a row depends on where the row stands among the 16 of a program.
    """
    case = replace(case, num_slots=8, slots_given=True)
    module, expected = smooth(case)
    exact = results(expected, **arguments(case))
    given = converted(case, torch.float32)
    together = results(module.float(), **given)
    counted = Counter(launched)
    launched.clear()
    configured(CallConfig(group=2, on_chip=False))
    in_groups = results(module, **given)
    groups = 2 if case.batch > 2 else 1
    once = ("absorb_fwd_kernel", "absorb_bwd_kernel")  # a call
    assert Counter(launched) == Counter({n: count * (1 if n in once else groups) for n, count in counted.items()})
    names = [name for name in together if name.startswith("output") or name.endswith(("inputs", "slots_init"))]
    assert len(names) >= 3
    if (
        counted["query_fwd_kernel"] or not case.batch
    ):  # else PyTorch's products, whose bits depend on the number of rows
        for name in names:
            assert torch.equal(in_groups[name], together[name]), name
    assert_error_at_most_twice(in_groups, together, exact)


HELD = (
    "plain",
    "one-slot",
    "one-input",
    "one-image",
    "no-image",
    "iterations-0",
    "iterations-1",
    "paper",
    "sum",
    "no-gru",
)
HELD += (
    "no-gru-no-mlp",
    "no-norm",
    "k-means",
    "eps-large-denominator",
    "both-masks",
    "mask-no-norm",
    "slot-mask-no-gru",
)
HELD += ("feature-map", "every-other-input", "attention-all")
ON_CHIP = [
    *(replace(case, dim=40) for case in SERVED if case.id in HELD),
    Case("inputs-60-wide", {"input_dim": 60}, dim=48),
    Case("slots-16-inputs-129", {"input_dim": 64}, num_slots=16, num_inputs=129),
    Case("inputs-128", num_inputs=128, dim=40),
]


@needs_hopper
@pytest.mark.parametrize("case", ON_CHIP, ids=lambda case: case.id)
def test_on_chip(case: Case, configured: Callable[[CallConfig], None], launched: list[str]) -> None:
    """All iterations in one launch: the error is at most twice that of a launch for each pass, in float16."""
    case = replace(case, slots_given=True)
    actual, expected = (module.half() for module in smooth(case))
    given = converted(case, torch.float16)
    doubled = {n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in given.items()}
    exact = results(expected.double(), **doubled)
    passes = results(actual, **given)
    counted = Counter(launched)
    launched.clear()
    configured(CallConfig(group=case.batch, on_chip=True))
    found = results(actual, **given)
    # A tenth of float16's eps: of gradients that are 0 in exact arithmetic, any draw is lucky or not.
    assert_error_at_most_twice(found, passes, exact, floor=1e-4)
    once = counted["attend_fwd_kernel"] > 0
    for name in ("attend_fwd_kernel", "query_fwd_kernel", "update_fwd_kernel"):
        counted[name] = 0
    assert Counter(launched) == counted + Counter(on_chip_fwd_kernel=once)


@needs_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_is_kept_on_the_chip_is_what_the_passes_keep(dtype: torch.dtype, launched: list[str]) -> None:
    """Slots, sums, queries and statistics themselves, at an offset of 10: the sums for the reason given below."""
    torch.manual_seed(0)
    module = SlotAttention(5, 24, input_dim=40).to(DEVICE)
    params = {name: p.detach() for name, p in module.named_parameters() if name not in NOT_ITERATED}
    inputs, slots = (normal(3, 150, 40) + 10).to(dtype), normal(3, 5, 24, seed=5).to(dtype)
    s, w = Settings(3, 1, 1e-8, 1e-5, "mean", "numerator", True), fold(params, slots, 1, 24**-0.5)
    with torch.no_grad():
        want = triton_backend.forward(inputs, slots, some(3, 150), some(3, 5), w, s)
        found = triton_backend.forward(inputs, slots, some(3, 150), some(3, 5), w, s, CallConfig(3, on_chip=True))
    # Tensor cores add up in another order, and where (a_nk + eps) r_n lies between two numbers of `dtype` in its last
    # bits, w' is the other one: by eps of itself, which moves a sum by eps (a_nk + eps) x^_n. It is so with few of the
    # 150 inputs, of different signs: with r_n off by 1e-6 to 1e-5 of itself, in the interpreter, by 1.1 eps in all.
    rounding = 2 * torch.finfo(dtype).eps if DEVICE == "cuda" else 0.0
    for x, expected, allowed in zip(found, want, (0.0, rounding, 0.0, 0.0), strict=True):
        assert largest(x - expected) <= 1e-4 * largest(expected[..., :-1]) + allowed


@pytest.mark.parametrize(
    "changed", [{"K": 17}, {"heads": 2}, {"D_in": 32}, {"D_in": 65}, {"dtype": torch.float32}, {"N": 1025}], ids=str
)
def test_on_chip_is_not_given_up_in_silence(changed: dict[str, Any], launched: list[str]) -> None:
    shape = {"N": 1024, "D_in": 64, "K": 16, "heads": 1, "dtype": torch.bfloat16} | changed
    module = SlotAttention(shape["K"], 24, input_dim=shape["D_in"], heads=changed.get("heads"))
    params = {name: p.detach() for name, p in module.named_parameters() if name not in NOT_ITERATED}
    inputs, slots = torch.zeros(2, shape["N"], shape["D_in"], dtype=shape["dtype"]), torch.zeros(2, shape["K"], 24)
    w = fold(params, slots, shape["heads"], 1.0)
    s = Settings(3, shape["heads"], 1e-8, 1e-5, "mean", "numerator", True)
    with pytest.raises(ValueError, match="not served by the kernel that holds an image on the chip"):
        triton_backend.forward(inputs, slots, None, None, w, s, CallConfig(2, on_chip=True))
    assert launched == []


def test_what_fits() -> None:
    shape = {"N": 1024, "D_in": 64, "K": 10, "heads": 1, "D": 64, "hidden": 128, "itemsize": 2, "hopper": True}
    assert fits_on_chip(**shape)
    assert fits_on_chip(**shape | {"D_in": 40, "hidden": None})
    assert fits_on_chip(**shape | {"D": 128, "N": 896})
    for changed in ({"N": 1025}, {"D_in": 65}, {"D_in": 32}, {"hopper": False}, {"D": 65}, {"hidden": 257}):
        assert not fits_on_chip(**shape | changed)
    assert not fits_on_chip(**shape | {"D": 129, "N": 896})
    assert images_in_cache(1024, 64, 2, 50 << 20) == 200
    assert images_in_cache(16384, 64, 2, 50 << 20) == 12
    assert images_in_cache(10**6, 64, 4, 50 << 20) == images_in_cache(0, 64, 2, 2) == 1


def test_neither_is_taken_before_it_is_timed() -> None:
    assert call_config(512) == CallConfig(group=512, on_chip=False)


@needs_hopper
@pytest.mark.parametrize("hard", ["offset-0", "offset-10", "offset-100", "small"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_error_on_the_chip_is_at_most_twice_the_references(
    dtype: torch.dtype, hard: str, configured: Callable[[CallConfig], None], launched: list[str]
) -> None:
    """Without equal features, which NumPy's product for 16 columns does not add up equally."""
    configured(CallConfig(group=3, on_chip=True))
    assert_errors_like_the_references("triton", dtype, HARD_INPUTS[hard], None)
    assert launched.count("on_chip_fwd_kernel") == 3
    assert "attend_fwd_kernel" not in launched


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_last_pass_in_parts(
    dtype: torch.dtype, launched: list[str], many_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the queries of all iterations do not fit on the chip together."""
    monkeypatch.setattr(ops, "iterations_at_once", lambda *sizes: 2)
    case = Case("", call={"iters": 5}, slots_given=True)
    actual, expected = pair(case, "triton")
    exact = results(expected, **arguments(case))
    found, plain = (results(module.to(dtype), **converted(case, dtype)) for module in (actual, expected))
    assert_error_at_most_twice(found, plain, exact, floor=5e-6 if dtype == torch.float32 else 1e-3)
    assert launched.count("attend_bwd_kernel") == 4 + 3


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


@needs_hopper
def test_offsets_beyond_int32_on_the_chip(configured: Callable[[CallConfig], None]) -> None:
    """Of the second block of inputs."""
    configured(CallConfig(group=1, on_chip=True))
    module = perturb(SlotAttention(3, 40, backend="triton")).to(DEVICE).half()
    slots_init = normal(1, 3, 40, seed=5).half()
    storage = torch.empty(2**31 + 2**25, dtype=torch.float16, device=DEVICE)
    apart = storage.as_strided((1, 129, 40), (0, 2**24, 1))
    apart.copy_(normal(1, 129, 40))
    with torch.no_grad():
        assert torch.equal(module(apart, slots_init=slots_init), module(apart.contiguous(), slots_init=slots_init))


# What is differentiated, how much the inputs vary, and by how much the loss is scaled. Gradients to the inputs have
# their type, and LayerNorm makes them the larger the less the inputs vary.
SCALES = {
    "parameters": (("to_k.weight", "to_q.weight"), 1.0, (2.0**-20, 2.0**15)),
    "inputs": (("inputs",), 1.0, (2.0**15,)),
    "inputs-that-hardly-vary": (("inputs",), 0.01, (2.0**-17,)),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("wanted", "variation", "scales"), SCALES.values(), ids=SCALES)
def test_gradients_of_any_size(
    wanted: tuple[str, ...], variation: float, scales: tuple[float, ...], dtype: torch.dtype
) -> None:
    """They are counted in units of their largest: float16 would lose 1e-6, and has no more than 65504."""
    module = SlotAttention(5, 24, backend="triton").to(DEVICE)
    tensors = {name: p.detach().to(dtype).float().requires_grad_() for name, p in module.named_parameters()}
    tensors["inputs"] = (variation * normal(2, 61, 24)).to(dtype).requires_grad_()
    slots_init = normal(2, 5, 24, seed=5).float()
    grads = []
    for scale in (1.0, *scales):
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            params = {name: x for name, x in tensors.items() if name != "inputs"}
            slots = torch.func.functional_call(module, params, (tensors["inputs"],), {"slots_init": slots_init})
        found = torch.autograd.grad(slots.sum() * scale, [tensors[name] for name in wanted])
        grads.append([x.double() / scale for x in found])
    for others in grads[1:]:
        for x, other in zip(grads[0], others, strict=True):
            assert largest(x - other) < 1e-2 * largest(x)


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


def test_the_products_over_the_slots_are_of_the_inputs_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the initial slots and the parameters are float32, as under autocast."""
    asked, precision = [], slot_ops.precision
    monkeypatch.setattr(slot_ops, "precision", lambda dtype: (asked.append(dtype), precision(dtype))[1])
    module, inputs = SlotAttention(2, 8, backend="triton").to(DEVICE), normal(2, 5, 8).bfloat16().requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16):
        module(inputs, slots_init=normal(2, 2, 8, seed=5).float()).sum().backward()
    T = module.iters
    assert asked == [torch.bfloat16] * (1 + T + T + 1 + 1)  # first query and updates, both ways; weights


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
