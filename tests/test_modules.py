"""The modules as drop-ins for those of the PyPI package `slot-attention`, and beside the reference."""

import copy
import inspect
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import slot_attention as peer
import torch
from compare import assert_error_at_most_twice, assert_same, normal, perturb, results
from torch import Tensor, nn

import slotattn_fast
from slotattn_fast import MultiHeadSlotAttention, SlotAttention, reference, slot_attention

DROP_INS = [
    (SlotAttention, peer.SlotAttention, (5, 12, 4, 1e-3, 17)),
    (SlotAttention, peer.SlotAttention, (7, 48)),
    (MultiHeadSlotAttention, peer.MultiHeadSlotAttention, (5, 12, 3, 5, 2, 1e-3, 17)),
    (MultiHeadSlotAttention, peer.MultiHeadSlotAttention, (7, 48)),
]
drop_ins = pytest.mark.parametrize(("ours", "theirs", "arguments"), DROP_INS)


def made(kind: type[nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    torch.manual_seed(11)
    return kind(*arguments)


@drop_ins
def test_changing_the_import_changes_no_number(
    ours: type[nn.Module], theirs: type[nn.Module], arguments: tuple[Any, ...]
) -> None:
    """One seed: the same weights, the same draws in `forward`, equal slots and gradients to float32 rounding."""
    actual, expected = made(ours, arguments), made(theirs, arguments)
    for (name, p), (their_name, their_p) in zip(actual.named_parameters(), expected.named_parameters(), strict=True):
        assert name == their_name
        assert torch.equal(p, their_p), name
    inputs = normal(3, 31, actual.dim, dtype=torch.float32)
    for call in ({}, {"num_slots": 9}):
        assert_same(results(actual, inputs, **call), results(expected, inputs, **call), 2e-5)
    state = torch.get_rng_state()  # after the call: as many draws
    results(expected, inputs, num_slots=9)
    assert torch.equal(torch.get_rng_state(), state)


@drop_ins
def test_state_dicts_load_both_ways(ours: type[nn.Module], theirs: type[nn.Module], arguments: tuple[Any, ...]) -> None:
    actual, expected = ours(*arguments), theirs(*arguments)
    actual.load_state_dict(expected.state_dict(), strict=True)
    expected.load_state_dict(ours(*arguments).state_dict(), strict=True)
    assert list(actual.state_dict()) == list(expected.state_dict())


@drop_ins
def test_attributes_and_signature(ours: type[nn.Module], theirs: type[nn.Module], arguments: tuple[Any, ...]) -> None:
    actual, expected = ours(*arguments), theirs(*arguments)
    for name in ("dim", "num_slots", "iters", "eps", "scale"):
        assert getattr(actual, name) == getattr(expected, name), name
    for method in ("__init__", "forward"):
        of_peer = inspect.signature(getattr(theirs, method)).parameters.values()
        of_ours = list(inspect.signature(getattr(ours, method)).parameters.values())[: len(of_peer)]
        assert [(p.name, p.default, p.kind) for p in of_ours] == [(p.name, p.default, p.kind) for p in of_peer]


def test_the_peers_wrapper_takes_our_module() -> None:
    slots, kept = peer.AdaptiveSlotWrapper(SlotAttention(5, 12))(torch.randn(3, 31, 12))
    assert slots.shape == (3, 5, 12)
    assert kept.shape == (3, 5)


@pytest.mark.parametrize("kind", ["SlotAttention", "MultiHeadSlotAttention"])
def test_constructor_and_forward_are_the_references(kind: str) -> None:
    """With `backend` besides; so that either is made, and called, as the other."""
    ours, plain = getattr(slotattn_fast, kind), getattr(reference, kind)
    for method in ("__init__", "forward"):
        actual = dict(inspect.signature(getattr(ours, method)).parameters)
        backend = actual.pop("backend", None)
        assert backend is None or (backend.default == "auto" and backend.kind is backend.KEYWORD_ONLY)
        assert actual == dict(inspect.signature(getattr(plain, method)).parameters)
    assert "backend" in inspect.signature(SlotAttention.__init__).parameters


@pytest.mark.parametrize("slot_init", ["shared", "per_slot", "vectors"])
def test_one_seed_gives_the_references_slots(slot_init: str) -> None:
    options = {"slot_init": slot_init, "input_dim": 20, "weight_init": "tensorflow"}
    found = []
    for kind in (SlotAttention, reference.SlotAttention):
        torch.manual_seed(11)
        module = kind(5, 12, **options)
        found.append(results(module, normal(3, 31, 20, dtype=torch.float32)))
    assert_same(*found, 2e-5)


def test_a_generator_makes_the_draw_reproducible() -> None:
    module, inputs = SlotAttention(5, 12), torch.randn(3, 31, 12)
    state = torch.get_rng_state()
    first, second = (module(inputs, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    other = module(inputs, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)  # PyTorch's own is not drawn from


def test_the_papers_module() -> None:
    torch.manual_seed(0)
    module = SlotAttention.paper(7, input_dim=32, backend="torch")
    assert type(module) is SlotAttention
    torch.manual_seed(0)
    expected = reference.SlotAttention.paper(7, input_dim=32)
    for name, p in expected.named_parameters():
        assert torch.equal(module.get_parameter(name), p), name
    assert (module.dim, module.norm_eps, module.to_q.bias, module.backend) == (64, 1e-3, None, "torch")


def test_heads_of_the_paper_s_class() -> None:
    """`MultiHeadSlotAttention` is `SlotAttention` with heads."""
    torch.manual_seed(0)
    one = MultiHeadSlotAttention(5, 12, heads=3, dim_head=5)
    torch.manual_seed(0)
    other = SlotAttention(5, 12, heads=3, dim_head=5)
    inputs = normal(2, 9, 12, dtype=torch.float32)
    assert_same(results(one, inputs, return_attn=True), results(other, inputs, return_attn=True), 0)


@pytest.mark.parametrize("options", [{}, {"heads": 3}])
def test_the_function_gives_the_module_s_slots(options: dict[str, int]) -> None:
    """From its parameters, where nothing else is said."""
    module = perturb(SlotAttention(5, 12, **options))
    inputs, slots = normal(3, 31, 12, dtype=torch.float32), normal(3, 5, 12, seed=5, dtype=torch.float32)
    found = slot_attention(inputs, slots, dict(module.named_parameters()), **options)
    assert torch.equal(found, module(inputs, slots_init=slots))


def test_the_function_s_defaults_are_the_module_s() -> None:
    of_module = {
        **inspect.signature(SlotAttention.forward).parameters,
        **inspect.signature(SlotAttention.__init__).parameters,
    }
    optional = [p for p in inspect.signature(slot_attention).parameters.values() if p.default is not p.empty]
    assert {p.name: p.default for p in optional} == {p.name: of_module[p.name].default for p in optional} | {"heads": 1}


def test_results_have_the_documented_shapes() -> None:
    module, inputs = SlotAttention(5, 12, iters=2), torch.randn(3, 31, 12)
    assert module(inputs, 4).shape == (3, 4, 12)
    assert module(inputs, slots_init=torch.randn(3, 6, 12)).shape == (3, 6, 12)
    assert module(inputs, return_all_slots=True).shape == (2, 3, 5, 12)
    assert module(inputs, iters=0, return_all_slots=True).shape == (0, 3, 5, 12)
    assert [x.shape for x in module(inputs, return_attn=True)] == [(3, 5, 12), (3, 5, 31)]
    assert [x.shape for x in module(inputs, return_attn="all")] == [(3, 5, 12), (2, 3, 5, 31)]
    headed = MultiHeadSlotAttention(5, 12, heads=3, iters=2)
    assert [x.shape for x in headed(inputs, return_attn="all")] == [(3, 5, 12), (2, 3, 3, 5, 31)]
    assert headed(inputs, return_attn="all", iters=0)[1].shape == (0, 3, 3, 5, 31)


def test_copies_and_state_dicts_keep_the_numbers() -> None:
    module, inputs = SlotAttention(5, 12, slot_init="per_slot"), normal(3, 31, 12, dtype=torch.float32)
    loaded = SlotAttention(5, 12, slot_init="per_slot")
    loaded.load_state_dict(module.state_dict(), strict=True)
    expected = results(module, inputs)
    for other in (copy.deepcopy(module), loaded):
        assert_same(results(other, inputs), expected, 0)


class WithHead(SlotAttention):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.head = nn.Linear(12, 2)

    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(super().forward(inputs))


def test_own_layers_tied_layers_and_parametrizations() -> None:
    """What people do to modules."""
    inputs = torch.randn(3, 31, 12)
    assert WithHead(5, 12)(inputs).shape == (3, 5, 2)
    for kind in (SlotAttention, peer.SlotAttention):
        torch.manual_seed(0)
        tied = kind(5, 12)
        tied.to_v = tied.to_k
        nn.utils.parametrizations.weight_norm(tied.to_q)
        with torch.no_grad():
            tied.to_q.parametrizations.weight.original0.mul_(3)
        torch.manual_seed(1)
        found = tied(inputs)
        if kind is SlotAttention:
            expected = found
    torch.testing.assert_close(found, expected)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Clamp(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-1, 1)


def _hooked(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda layer, given: None)


# What is done to the module; what the error says.
OTHER_LAYERS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "adapter": (
        lambda m: setattr(m, "to_q", Doubled(12, 64)),
        "to_q must be an nn.Linear, got Doubled with a forward of its own; layers are not called here: change",
    ),
    "no-bias": (
        lambda m: setattr(m, "gru", nn.GRUCell(12, 12, bias=False)),
        "gru must be an nn.GRUCell, got GRUCell without a bias_ih",
    ),
    "own-relu": (
        lambda m: m.mlp.__setitem__(1, Clamp()),
        r"got Sequential\(Linear, Clamp, Linear\) with a forward of its own",
    ),
    "mlp-forward": (
        lambda m: setattr(m.mlp, "forward", lambda x: x),
        "Linear, ReLU, Linear.* with a forward of its own",
    ),
    "mlp-pre-hook": (lambda m: _hooked(m.mlp), "Linear, ReLU, Linear.* with a forward pre-hook"),
    "relu-pre-hook": (lambda m: _hooked(m.mlp[1]), "Linear, ReLU, Linear.* with a forward pre-hook"),
    "own-forward": (
        lambda m: setattr(m.gru, "forward", lambda x, h: h),
        "gru must be an nn.GRUCell, got GRUCell with a forward of its own",
    ),
    "pre-hook": (lambda m: _hooked(m.mlp[0]), r"mlp\.0 must be an nn.Linear, got Linear with a forward pre-hook"),
    "no-affine": (
        lambda m: setattr(m, "norm_slots", nn.LayerNorm(12, elementwise_affine=False)),
        "norm_slots must be an nn.LayerNorm, got LayerNorm without a weight",
    ),
    "other-norm": (
        lambda m: setattr(m, "norm_input", nn.RMSNorm(12)),
        "norm_input must be an nn.LayerNorm, got RMSNorm with",
    ),
    "no-projection": (lambda m: setattr(m, "to_k", nn.Identity()), "to_k must be an nn.Linear, got Identity with"),
    "activation": (
        lambda m: m.mlp.__setitem__(1, nn.GELU()),
        r"mlp must be nn\.Sequential\(Linear, ReLU, Linear\), got Sequential\(Linear, GELU, Linear\); layers are not",
    ),
    "longer": (
        lambda m: m.mlp.append(nn.Dropout()),
        r"got Sequential\(Linear, ReLU, Linear, Dropout\)",
    ),
    "no-mlp": (lambda m: setattr(m, "mlp", nn.Identity()), r"mlp must be nn\.Sequential.*, got Identity\(\)"),
}


@pytest.mark.parametrize(("change", "message"), OTHER_LAYERS.values(), ids=OTHER_LAYERS)
def test_a_layer_that_computes_something_else_is_refused(change: Callable[[nn.Module], object], message: str) -> None:
    """Not called as they are, it would be left out in silence."""
    module = SlotAttention(5, 12)
    change(module)
    with pytest.raises(TypeError, match=message):
        module(torch.randn(3, 31, 12))


@pytest.mark.parametrize("layer", ["to_v", "gru", "mlp", "mlp.1", "mlp.2"])
@pytest.mark.parametrize("kind", ["forward", "full_backward", "full_backward_pre"])
def test_hooks_that_do_not_run_are_warned_of(layer: str, kind: str) -> None:
    module = SlotAttention(5, 12)
    of_layer = module.get_submodule(layer)
    name = f"register_{kind}_hook"
    getattr(module, name)(lambda *given: None)  # of the module itself, which runs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(torch.randn(3, 31, 12, requires_grad=True)).sum().backward()
    getattr(of_layer, name)(lambda *given: None)
    with pytest.warns(UserWarning, match=f"hooks on {layer} do not run: layers are not called here"):
        module(torch.randn(3, 31, 12))


def test_any_integer_is_one() -> None:
    """As the peer takes them; the compiler would stumble over NumPy's kept as they are."""
    numbers = [np.int64(n) for n in (5, 12, 2)]
    module = SlotAttention(
        *numbers, hidden_dim=np.int32(16), input_dim=np.int64(12), heads=np.int8(2), dim_head=np.int8(6)
    )
    assert [type(x) for x in (module.num_slots, module.dim, module.iters, module.heads)] == [int] * 4
    inputs = torch.randn(3, 31, 12)
    slots = torch.randn(3, 5, 12)
    found = module(inputs, iters=np.int64(1), slots_init=slots)
    torch.testing.assert_close(found, module(inputs, iters=1, slots_init=slots))
    assert module(inputs, np.int64(4)).shape == (3, 4, 12)
    with pytest.raises(TypeError, match="iters must be an integer, got '3'"):
        module(inputs, iters="3")
    for name, value in (("num_slots", 5.0), ("dim", "12"), ("iters", 2.5), ("heads", 2.0), ("hidden_dim", None)):
        options = {"num_slots": 5, "dim": 12} | {name: value}
        with pytest.raises(TypeError, match=f"{name} must be an integer, got {value!r}"):
            SlotAttention(**options)


def test_the_names_of_the_package() -> None:
    code = "import slotattn_fast as s, sys; assert 'torch' not in sys.modules; print(s.reference.SlotAttention, dir(s))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("reference.slot_attention.SlotAttention", "'MultiHeadSlotAttention'", "'reference'", "'metrics'"):
        assert name in done.stdout


def test_the_layer_norms_epsilon_is_theirs() -> None:
    """The peer's constructor has none; Identity leaves a LayerNorm out."""
    inputs = torch.randn(3, 31, 12)
    found = []
    for kind in (SlotAttention, peer.SlotAttention):
        torch.manual_seed(0)
        module = kind(5, 12)
        for norm in (module.norm_input, module.norm_slots):
            norm.eps = 0.5
        module.norm_pre_ff = nn.Identity()
        torch.manual_seed(1)
        found.append(module(inputs))
    torch.testing.assert_close(*found)
    module = SlotAttention(5, 12)
    module.norm_input.eps = 0.1
    with pytest.raises(ValueError, match=r"the LayerNorms must have one eps, got \[0\.1, 1e-05, 1e-05\]"):
        module(inputs)


def test_layer_norms_in_float32_beside_a_half_type() -> None:
    given = {"inputs": normal(3, 31, 12).bfloat16(), "slots_init": normal(3, 5, 12, seed=5).bfloat16()}
    found = []
    for kind in (SlotAttention, reference.SlotAttention):
        torch.manual_seed(0)
        module = perturb(kind(5, 12)).bfloat16()
        for norm in (module.norm_input, module.norm_slots, module.norm_pre_ff):
            norm.float()
        found.append(results(module, **given))
    exact = results(module.double(), **{name: x.double() for name, x in given.items()})
    assert_error_at_most_twice(*found, exact)
    fast, plain = found
    assert all(x.dtype == plain[name].dtype for name, x in fast.items())
    ours = SlotAttention(5, 12).bfloat16()
    ours.to_q.float()
    with pytest.raises(TypeError, match=r"to_q\.weight must be torch\.bfloat16 as inputs is, got torch\.float32"):
        ours(given["inputs"])


@pytest.mark.parametrize("call", [{}, {"return_attn": True}, {"return_all_slots": True, "return_attn": "all"}])
def test_slots_have_memory_of_their_own(call: dict[str, Any]) -> None:
    """No more than they take, and may be changed in place without harm to the attention's gradient."""
    module, inputs = SlotAttention(5, 12), torch.randn(3, 31, 12)
    slots, *attn = outputs if isinstance(outputs := module(inputs, **call), tuple) else (outputs,)
    assert slots.untyped_storage().nbytes() == slots.nbytes
    slots.mul_(2)
    sum(x.square().sum() for x in (slots, *attn)).backward()


def test_no_gradients_in_inference_mode() -> None:
    module, inputs = SlotAttention(5, 12), torch.randn(3, 31, 12)
    slots_init = torch.randn(3, 5, 12)
    expected = module(inputs, slots_init=slots_init)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            slots = module(inputs, slots_init=slots_init)
        assert not slots.requires_grad
        assert torch.equal(slots, expected)


def test_ddp() -> None:
    module, inputs = SlotAttention(5, 12), normal(3, 31, 12, dtype=torch.float32)
    expected = results(module, inputs)
    with tempfile.NamedTemporaryFile() as store:
        torch.distributed.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)
        try:
            parallel = nn.parallel.DistributedDataParallel(module)
            torch.manual_seed(7)
            slots = parallel(inputs)
            (slots * normal(*slots.shape, dtype=slots.dtype)).sum().backward()
        finally:
            torch.distributed.destroy_process_group()
    for name, p in module.named_parameters():
        torch.testing.assert_close(p.grad, expected[f"gradient to {name}"])
