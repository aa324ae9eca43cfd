"""The backends under PyTorch's transformations: torch.compile, torch.export, torch.func, torch.library.

The Triton kernels are run by the interpreter and in float32.
"""

import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compare import Results, assert_same, normal, perturb, results
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from slotattn_fast import SlotAttention, reference

# What reaches different branches of the operators; compared in float64.
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "heads-masks": (
        {"heads": 3},
        {"mask": normal(2, 13, seed=3) > -0.5, "slot_mask": normal(2, 5, seed=4) > -0.5, "return_all_slots": True},
    ),
    "attention": ({"bias": False}, {"return_attn": "all"}),
    "weighted-sum": ({"aggregation": "sum", "use_gru": False}, {}),
    "softmax-over-inputs": ({"aggregation": "sum", "softmax_over": "inputs"}, {}),
}
SERVED = {"torch": list(CALLS), "triton": ["plain", "heads-masks", "attention", "weighted-sum"]}
calls = pytest.mark.parametrize(
    ("backend", "options", "call"),
    [pytest.param(backend, *CALLS[name], id=f"{backend}-{name}") for backend in SERVED for name in SERVED[backend]],
)
backends = pytest.mark.parametrize("backend", SERVED)
DTYPES = {"torch": torch.float64, "triton": torch.float32}
TOLERANCES = {"torch": 1e-9, "triton": 1e-5}


def made(options: dict[str, Any], backend: str = "torch") -> SlotAttention:
    module = SlotAttention(5, 12, backend=backend, **options).to(DTYPES[backend])
    perturb(module)
    return module


def given(batch: int = 2, num_inputs: int = 13, num_slots: int = 5, backend: str = "torch") -> dict[str, Tensor]:
    tensors = {"inputs": normal(batch, num_inputs, 12), "slots_init": normal(batch, num_slots, 12, seed=5)}
    return {name: x.to(DTYPES[backend]) for name, x in tensors.items()}


def by_own_names(found: Results) -> Results:
    """A compiled module's parameters, by the names that the module itself gives them."""
    return {name.replace("_orig_mod.", ""): x for name, x in found.items()}


@calls
def test_compiles_whole_with_its_backward(backend: str, options: dict[str, Any], call: dict[str, Any]) -> None:
    module, tensors = made(options, backend), given(backend=backend)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found, expected = results(compiled, **tensors, **call), results(module, **tensors, **call)
    assert_same(by_own_names(found), expected, TOLERANCES[backend])


@backends
def test_one_graph_serves_every_size(backend: str) -> None:
    module = made({}, backend)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in ((2, 13, 5), (5, 29, 4)):
        tensors = given(*sizes, backend=backend)
        found, expected = results(compiled, **tensors), results(module, **tensors)
        assert_same(by_own_names(found), expected, TOLERANCES[backend])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_drawing_its_slots(dynamic: bool) -> None:
    module = made({})
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    inputs = given()["inputs"]
    assert_same(by_own_names(results(compiled, inputs)), results(module, inputs), 1e-9)


def test_compiles_under_autocast() -> None:
    """The gradients to the parameters get the rounding of autocast's type, because it reaches the compiled backward."""
    module = made({}).float()
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    tensors = {name: x.float() for name, x in given().items()}
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = by_own_names(results(compiled, **tensors)), results(module, **tensors)
    assert_same(found, expected, 2e-2)
    for name in ("output 0", "gradient to inputs", "gradient to slots_init"):
        torch.testing.assert_close(found[name], expected[name])


@calls
def test_exports(backend: str, options: dict[str, Any], call: dict[str, Any]) -> None:
    module, tensors = made(options, backend), given(backend=backend)
    expected = module(**tensors, **call)
    exported = torch.export.export(module, (), {**tensors, **call}).module()
    torch.testing.assert_close(exported(**tensors, **call), expected)
    with torch.no_grad():
        torch.testing.assert_close(exported(**tensors, **call), expected)


class Recorder(TorchDispatchMode):
    """The arguments with which this project's operators are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Any, tuple[Any, ...]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "slotattn_fast":
            self.calls[func] = args
        return func(*args, **(kwargs or {}))


@backends
@pytest.mark.parametrize(
    ("options", "call"),
    [CALLS["plain"], ({"heads": 3, "bias": False}, {**CALLS["heads-masks"][1], "return_attn": "all"})],
    ids=["all-weights", "all-outputs"],
)
def test_operators_are_registered_right(backend: str, options: dict[str, Any], call: dict[str, Any]) -> None:
    """opcheck: the schema tells of no aliasing or mutation that is not there, and fake tensors get the right shapes.

    The backward operators have no derivatives of their own; that they compile, the tests above show.
    """
    with Recorder() as recorder:
        results(made(options, backend), **given(backend=backend), **call)
    expected = {f"slotattn_fast.{backend}_{which}.default" for which in ("forward", "backward")}
    if backend == "triton" and "return_attn" in call:
        expected.add("slotattn_fast.triton_map.default")
    if backend == "triton":
        expected |= {f"slotattn_fast.triton_absorb{which}.default" for which in ("", "_backward")}
    assert {str(op) for op in recorder.calls} == expected
    for op, args in recorder.calls.items():
        wanted = "backward" not in str(op)
        args = tree_map_only(Tensor, lambda x: x.detach().requires_grad_(wanted and x.is_floating_point()), args)  # noqa: B023
        if wanted:
            torch.library.opcheck(op, args)
        else:
            torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


def function(module: torch.nn.Module, **call: Any) -> Callable[..., Tensor]:
    """The module as a function of its parameters, the inputs and the initial slots."""

    def run(params: dict[str, Tensor], inputs: Tensor, slots_init: Tensor) -> Tensor:
        return torch.func.functional_call(module, params, (inputs,), {"slots_init": slots_init, **call})

    return run


@pytest.mark.parametrize("heads", [None, 3])
def test_vmap_over_models(heads: int | None) -> None:
    """An ensemble: parameters, inputs and slots with one more axis in front."""
    modules = [perturb(SlotAttention(5, 12, heads=heads).double(), seed) for seed in range(3)]
    params, _ = torch.func.stack_module_state(modules)
    inputs, slots = normal(3, 2, 13, 12), normal(3, 2, 5, 12, seed=5)
    found = torch.func.vmap(function(modules[0]))(params, inputs, slots)
    expected = [m(x, slots_init=s) for m, x, s in zip(modules, inputs, slots, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_vmap_draws_slots() -> None:
    module = made({})
    found = torch.func.vmap(module, randomness="different")(normal(3, 2, 13, 12).float().double())
    assert found.shape == (3, 2, 5, 12)
    assert not torch.equal(found[0], found[1])


def test_torch_func_grad() -> None:
    module, tensors = made({}), given()
    params = {name: p.detach() for name, p in module.named_parameters()}
    run = function(module)
    found = torch.func.grad(lambda *args: run(*args).square().sum())(params, *tensors.values())
    module(**tensors).square().sum().backward()
    for name, p in module.named_parameters():
        torch.testing.assert_close(found[name], torch.zeros_like(p) if p.grad is None else p.grad)


def test_gradients_of_single_images() -> None:
    """torch.func.vmap over torch.func.grad."""
    module, tensors = made({}), given(batch=3)
    params = {name: p.detach() for name, p in module.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor, slots: Tensor) -> Tensor:
        return function(module)(params, x[None], slots[None]).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(params, *tensors.values())
    expected = torch.func.grad(lambda p: function(module)(p, *tensors.values()).square().sum())(params)
    for name, want in expected.items():
        torch.testing.assert_close(found[name].sum(0), want)


def test_forward_mode_derivatives() -> None:
    module, tensors = made({}), given()
    plain = reference.SlotAttention(5, 12).double()
    plain.load_state_dict(module.state_dict())
    tangents = normal(2, 13, 12, seed=8)
    _, found = torch.func.jvp(lambda x: module(x, slots_init=tensors["slots_init"]), (tensors["inputs"],), (tangents,))
    _, want = torch.func.jvp(lambda x: plain(x, slots_init=tensors["slots_init"]), (tensors["inputs"],), (tangents,))
    torch.testing.assert_close(found, want)
    with forward_ad.dual_level():
        slots = module(forward_ad.make_dual(tensors["inputs"], tangents), slots_init=tensors["slots_init"])
        torch.testing.assert_close(forward_ad.unpack_dual(slots).tangent, want)


def test_transformations_inside_of_what_is_compiled() -> None:
    """A derivative that the operator has no rule for is taken by PyTorch's own."""
    module, tensors = made({}), given(batch=3)

    def loss(x: Tensor, slots: Tensor) -> Tensor:
        return module(x[None], slots_init=slots[None]).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss))
    torch.compiler.reset()
    found = torch.compile(gradients, backend="eager")(*tensors.values())
    torch.testing.assert_close(found, gradients(*tensors.values()))


FORWARD_MODE = """
import torch
from slotattn_fast import SlotAttention
module, x, slots = SlotAttention(5, 12), torch.randn(2, 13, 12), torch.randn(2, 5, 12)
along = lambda x: torch.func.jvp(lambda x: module(x, slots_init=slots), (x,), (x,))[1]
torch.compile(along, backend="eager")(x)
"""


def test_forward_mode_inside_of_what_is_compiled() -> None:
    """PyTorch's error, of its native_layer_norm, and no derivative of 0.

    In a process of its own: what the failed compilation leaves behind switches autograd off, in the middle of whatever
    runs when the garbage collector comes to it (PyTorch 2.13).
    """
    done = subprocess.run([sys.executable, "-c", FORWARD_MODE], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Dynamo failed to run FX node" in done.stderr


def test_exported_for_onnx_it_needs_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.onnx.export exports: other programs know no operators of ours."""
    module, tensors = made({}), given()
    for in_export in (False, True):
        monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda found=in_export: found)
        graph = str(torch.export.export(module, (tensors["inputs"],), {"slots_init": tensors["slots_init"]}).graph)
        assert ("slotattn_fast." in graph) is not in_export


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traced_module_needs_nothing_of_ours() -> None:
    module, inputs = made({}), given()["inputs"]
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, (normal(2, 13, 12, seed=8),), check_trace=False), file)
    assert "slotattn_fast::" not in str(torch.jit.load(io.BytesIO(file.getvalue())).graph)
    found = []
    for kind in (torch.jit.load(io.BytesIO(file.getvalue())), module):
        torch.manual_seed(0)
        found.append(kind(inputs))
    torch.testing.assert_close(*found)


def test_jacobian_vectorised() -> None:
    """A batch of incoming gradients at once, after an ordinary forward pass."""
    module, tensors = made({}), given(batch=1, num_slots=2)

    def run(x: Tensor) -> Tensor:
        return module(x, slots_init=tensors["slots_init"])

    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(run, tensors["inputs"], vectorize=True), jacobian(run, tensors["inputs"]))


@pytest.mark.parametrize("device", ["meta", "fake"])
def test_shapes_without_data(device: str) -> None:
    with torch.device("meta") if device == "meta" else FakeTensorMode():
        inputs = torch.zeros(2, 13, 12, requires_grad=True)
        slots = SlotAttention(5, 12)(inputs)
        slots.sum().backward()
    assert slots.shape == (2, 5, 12)
    assert inputs.grad.shape == (2, 13, 12)
