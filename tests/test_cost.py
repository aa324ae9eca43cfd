"""Bytes and launches of the Triton backend, counted from its launches; and that count against what kernels touch."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from slotattn_fast.kernels.launch import CallConfig
from torch import Tensor

from benchmarks import cost
from benchmarks.cost import Shape, nbytes, plans
from slotattn_fast import operators
from slotattn_fast.slot_update import fold

DISCOVERY = Shape(64, 16384, 64, 7, 64, 3, torch.bfloat16)
# All of size N goes over the inputs' rows once a pass; what is less than a column for every slot may be kept.
LARGE = DISCOVERY.B * DISCOVERY.N * DISCOVERY.K


@pytest.mark.parametrize("T", [0, 1, 3, 5])
def test_every_pass_reads_the_inputs_once(T: int) -> None:
    shape = DISCOVERY._replace(T=T)
    forward, backward = plans(shape)
    for plan, for_weights in ((forward, 0), (backward, 1)):
        assert plan.moved("x_ptr", written=False) == T * shape.unit
        assert plan.moved("x_ptr", read=False) == 0
        passes = [launch for launch in plan.launches if launch.kernel.startswith("attend")]
        # One over the slots for each, the first query's, the weights', and that of the absorbed projections.
        assert len(plan.launches) == (2 * T + 2 + for_weights if T else 1)
        reads = [launch.read.get("x_ptr") for launch in passes]
        assert reads == [shape.unit] * T
    assert forward.moved("d_x_ptr") == 0
    assert backward.moved("d_x_ptr", read=False) == (shape.unit if T else 0)
    assert backward.moved("d_x_ptr", written=False) == 0
    assert ("zero_" in backward.operators) == (T == 0)  # then the gradient is written by PyTorch
    # The sides of the slots move little, though every operator of theirs is counted as if nothing stayed in the cache.
    assert forward.total <= (1.2 * T + 0.01) * shape.unit
    assert backward.total <= 1.3 * (T + 1) * shape.unit


@pytest.mark.parametrize("T", [0, 1, 3, 5])
def test_on_chip_the_forward_pass_reads_the_inputs_once(T: int) -> None:
    shape = Shape(512, 1024, 64, 10, 64, T, torch.bfloat16)
    forward, backward = plans(shape, config=CallConfig(512, on_chip=True))
    assert [launch.kernel for launch in forward.launches] == ["absorb_fwd_kernel"] + ["on_chip_fwd_kernel"] * (T > 0)
    assert forward.moved("x_ptr", written=False) == (shape.unit if T else 0)
    assert forward.moved("x_ptr", read=False) == 0
    assert (
        forward.total <= ((1.1 if T else 0.01) + 0.1 * T) * shape.unit
    )  # statistics; and what is small, in every iteration
    assert backward.moved("x_ptr", written=False) == T * shape.unit


def test_groups_of_images_move_the_same_large_tensors() -> None:
    """In each launch the bytes of its group; from memory or from the cache is not told apart."""
    (forward, backward), in_groups = plans(DISCOVERY), plans(DISCOVERY, config=CallConfig(12, on_chip=False))
    for whole, parts in zip((forward, backward), in_groups, strict=True):
        once = sum(launch.kernel.startswith("absorb") for launch in whole.launches)
        assert len(parts.launches) - once == 6 * (len(whole.launches) - once)
        for name in ("x_ptr", "d_x_ptr", *cost.STATS):
            assert parts.moved(name) == whole.moved(name)
        reads = [launch.read["x_ptr"] for launch in parts.launches if "x_ptr" in launch.read]
        assert reads == [DISCOVERY.unit * images // 64 for images in (12, 12, 12, 12, 12, 4) for _ in range(3)]


@pytest.mark.parametrize("T", [0, 1, 3, 5])
def test_nothing_large_is_allocated_but_the_gradient(T: int) -> None:
    forward, backward = plans(DISCOVERY._replace(T=T))
    gradient = DISCOVERY.B * DISCOVERY.N * DISCOVERY.D_in
    assert [n for n in forward.allocations if n >= LARGE] == []
    assert [n for n in backward.allocations if n >= LARGE] == [gradient]


@pytest.mark.parametrize("T", [0, 1, 3, 5])
def test_nothing_large_is_saved_but_the_inputs(T: int) -> None:
    shape = DISCOVERY._replace(T=T)
    params, s = cost.call(shape, "meta")
    inputs = torch.empty(shape.B, shape.N, shape.D_in, dtype=shape.dtype, device="meta", requires_grad=True)
    slots = torch.empty(shape.B, shape.K, shape.D, device="meta", requires_grad=True)
    saved: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        w = fold(params, slots, 1, shape.D**-0.5, operators.absorb)
        operators.run("triton", inputs, slots, None, None, w, s)
    large = [x for x in saved if x.numel() >= LARGE]
    assert len(saved) > len(large) == 1
    assert large[0].shape == inputs.shape
    assert large[0].dtype == inputs.dtype


class Touched:
    """What one launch loaded and stored, by the interpreter: addresses of elements, a list for every instruction."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
        self.loads: list[np.ndarray] = []
        self.stores: list[np.ndarray] = []

    def of(self, name: str, lists: list[np.ndarray]) -> np.ndarray:
        """The addresses within a tensor."""
        x = self.arguments[name]
        addresses = np.concatenate([np.zeros(0, np.uint64), *lists])
        return addresses[(addresses >= x.data_ptr()) & (addresses < x.data_ptr() + x.numel() * x.element_size())]


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[Touched]:
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    launches: list[Touched] = []
    builder, accesses = interpreter.InterpreterBuilder, cost.accesses
    load, store = builder.create_masked_load, builder.create_masked_store

    def counted_load(self: Any, ptrs: Any, mask: Any, *others: Any) -> Any:
        launches[-1].loads.append(ptrs.data[mask.data])
        return load(self, ptrs, mask, *others)

    def counted_store(self: Any, ptrs: Any, value: Any, mask: Any, *others: Any) -> Any:
        launches[-1].stores.append(ptrs.data[mask.data])
        return store(self, ptrs, value, mask, *others)

    def launched(kernel: str, arguments: dict[str, Any]) -> Any:
        launches.append(Touched(arguments))
        return accesses(kernel, arguments)

    monkeypatch.setattr(builder, "create_masked_load", counted_load)
    monkeypatch.setattr(builder, "create_masked_store", counted_store)
    monkeypatch.setattr(cost, "accesses", launched)
    return launches


@pytest.mark.parametrize("masked", [False, True], ids=["", "mask"])
def test_counted_is_what_the_kernels_touch(masked: bool, touched: list[Touched]) -> None:
    """Every argument of a pass is read or written as counted; of size N, each element once a launch.

    The inputs are loaded twice, the second time from the cache, where their rows are also needed outside of a dot.
    """
    shape = Shape(2, 300, 24, 3, 16, 2, torch.float16, masked)
    forward, backward = plans(shape, "cpu", run=True)
    launches = [*forward.launches, *backward.launches]
    assert len(launches) == len(touched) == 2 * (2 * shape.T + 2) + 1
    for launch, actual in zip(launches, touched, strict=True):
        if not launch.kernel.startswith(("attend", "weights")):
            continue
        assert launch.read
        assert launch.written
        for name, x in actual.arguments.items():
            for counted, lists in ((launch.read, actual.loads), (launch.written, actual.stores)):
                found = actual.of(name, lists)
                assert len(np.unique(found)) * x.element_size() == counted.get(name, 0), (launch.kernel, name)
                if shape.N in x.shape:
                    again = 2 if name == "x_ptr" and len(found) > x.numel() else 1
                    assert len(found) == again * len(np.unique(found)), (launch.kernel, name)


def test_on_chip_loads_each_input_once(touched: list[Touched]) -> None:
    """The rest is counted as it is touched; statistics, sums and queries are loaded again after they are stored."""
    shape = Shape(2, 300, 40, 3, 16, 3, torch.float16, mask=True)
    forward, _ = plans(shape, "cpu", run=True, config=CallConfig(2, on_chip=True))
    launch, actual = forward.launches[-1], touched[len(forward.launches) - 1]
    assert launch.kernel == "on_chip_fwd_kernel"
    for name, x in actual.arguments.items():
        counted, lists = (launch.read, actual.loads) if name in launch.read else (launch.written, actual.stores)
        found = actual.of(name, lists)
        assert len(np.unique(found)) * x.element_size() == counted[name] == nbytes(x), name
        if name == "x_ptr" or name in launch.written:
            assert len(found) == len(np.unique(found)), name


def test_the_decoders_end_reads_the_maps_once_and_writes_their_gradient_once() -> None:
    maps, images = cost.decoder_maps(64, 7, 3, 128, torch.bfloat16)
    forward, backward = cost.mixture_plans(maps, images)
    for plan in (forward, backward):
        assert len(plan.launches) == 1
        assert plan.moved("maps", written=False) == maps.nbytes
        assert plan.moved("images", written=False) == images.nbytes
    assert forward.moved("maps", "images") == forward.total - forward.moved("partials") - forward.operator_bytes
    assert forward.total <= 1.001 * (maps.nbytes + images.nbytes)
    assert backward.moved("d_maps", read=False) == maps.nbytes
    assert backward.total <= 1.001 * (2 * maps.nbytes + images.nbytes)
    assert backward.operators == []
    assert [n for n in forward.allocations if n >= images.numel()] == []
    assert [n for n in backward.allocations if n >= images.numel()] == [maps.numel()]


@pytest.mark.parametrize("together", [True, False], ids=["channels-together", "planes"])
def test_the_decoders_end_touches_what_is_counted(together: bool, touched: list[Touched]) -> None:
    maps, images = cost.decoder_maps(2, 3, 3, 20, torch.float16, "cpu")
    maps = maps if together else maps.contiguous()
    launches = [plan.launches[0] for plan in cost.mixture_plans(maps, images, run=True)]
    assert [launch.kernel for launch in launches] == ["mixture_loss_fwd_kernel", "mixture_loss_bwd_kernel"]
    for launch, actual in zip(launches, touched, strict=True):
        for name, x in actual.arguments.items():
            found, other = actual.of(name, actual.loads), actual.of(name, actual.stores)
            found, other = (found, other) if name in launch.read else (other, found)
            if name != "d_loss":  # which every program reads
                assert len(found) == len(np.unique(found)) == x.numel(), (launch.kernel, name)
            assert len(np.unique(found)) * x.element_size() == (launch.read | launch.written)[name]
            assert len(other) == 0


@pytest.mark.parametrize("given", [["--D", "0"], ["--iters", "-1"]])
def test_sizes_are_told(given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["cost", *given])
    with pytest.raises(SystemExit):
        cost.main()
    assert f"argument {given[0]}: got {given[1]}, expected an integer, at least " in capsys.readouterr().err


def test_expanded_inputs_count_once() -> None:
    assert nbytes(torch.empty(1, 5, 3).expand(4, 5, 3)) == 4 * 5 * 3
    assert nbytes(torch.empty(4, 5, 3)) == 4 * 4 * 5 * 3
    assert nbytes(torch.empty(0, 5)) == 0
