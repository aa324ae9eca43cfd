"""The reference: the paper's properties, its ablation switches written out by hand, and the PyPI package's numbers."""

import math
from typing import Any

import pytest
import slot_attention as peer
import torch
from compare import assert_same, normal, perturb, results
from hypothesis import given, settings
from hypothesis import strategies as st
from slotattn_fast.reference import MultiHeadSlotAttention, SlotAttention
from torch import Tensor, nn

HEADS = {"heads": 3, "dim_head": 5}
OFF = {"use_gru": False, "use_mlp": False, "use_norm": False, "use_projections": False}


@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    num_inputs=st.integers(1, 17),
    num_slots=st.integers(1, 9),
    options=st.sampled_from([{}, HEADS, {"aggregation": "sum"}, {"slot_init": "per_slot"}, {"eps": 0.2}, OFF]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_invariant_to_the_order_of_inputs_and_equivariant_to_that_of_slots(
    seed: int, batch: int, num_inputs: int, num_slots: int, options: dict[str, Any]
) -> None:
    """Appendix D of the paper."""
    module = perturb(SlotAttention(num_slots, 6, **options).double())
    inputs, slots_init = normal(batch, num_inputs, 6, seed=seed), normal(batch, num_slots, 6, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    order, slot_order = torch.randperm(num_inputs, generator=generator), torch.randperm(num_slots, generator=generator)
    slots, attn = module(inputs, slots_init=slots_init, return_attn=True)
    slots_after, attn_after = module(inputs[:, order], slots_init=slots_init[:, slot_order], return_attn=True)
    torch.testing.assert_close(slots_after, slots[:, slot_order], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(attn_after, attn[..., slot_order, :][..., order], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("options", [{}, HEADS, {"eps": 0.2, "eps_in": "denominator"}], ids=str)
def test_gradcheck(options: dict[str, Any]) -> None:
    module = perturb(SlotAttention(2, 4, hidden_dim=5, **options).double())
    inputs, slots_init = normal(2, 5, 4).requires_grad_(), normal(2, 2, 4, seed=5).requires_grad_()
    names, weights = zip(*module.named_parameters(), strict=True)

    def call(inputs: Tensor, slots_init: Tensor, *weights: Tensor) -> Tensor:
        given = {"slots_init": slots_init, "return_attn": True}
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (inputs,), given)

    assert torch.autograd.gradcheck(call, (inputs, slots_init, *weights))


PEERS = [
    (SlotAttention, peer.SlotAttention, {"num_slots": 5, "dim": 12, "iters": 4, "eps": 1e-3, "hidden_dim": 17}),
    (SlotAttention, peer.SlotAttention, {"num_slots": 7, "dim": 48}),
    (MultiHeadSlotAttention, peer.MultiHeadSlotAttention, {"num_slots": 5, "dim": 12, "heads": 3, "dim_head": 5}),
    (MultiHeadSlotAttention, peer.MultiHeadSlotAttention, {"num_slots": 3, "dim": 20}),
]


@pytest.mark.parametrize(("ours", "theirs", "options"), PEERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=str)
def test_equals_the_pypi_package(
    ours: type[nn.Module], theirs: type[nn.Module], options: dict[str, int], dtype: torch.dtype, tolerance: float
) -> None:
    """The same weights and noise give the same slots and gradients to rounding."""
    expected = perturb(theirs(**options)).to(dtype)
    actual = ours(**options).to(dtype)
    actual.load_state_dict(expected.state_dict(), strict=True)
    inputs = normal(3, 31, options["dim"], dtype=dtype)
    assert_same(results(actual, inputs, num_slots=6), results(expected, inputs, num_slots=6), tolerance)


def one_iteration(module: SlotAttention, inputs: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax over the slots [B, K, N] and the values [B, N, D], written out."""
    inputs, slots = module.norm_input(inputs), module.norm_slots(slots)
    logits = module.to_q(slots) @ module.to_k(inputs).mT * module.scale
    return logits.softmax(1), module.to_v(inputs)


def normalised(attn: Tensor) -> Tensor:
    return attn / attn.sum(2, keepdim=True)


# What the updates of one iteration are, given the softmax a [B, K, N] and the values v [B, N, D].
AGGREGATIONS = {
    "weighted-mean": ({"eps": 0.3}, lambda m, a, v: normalised(a + 0.3) @ v),
    "eps-in-denominator": (
        {"eps": 0.3, "eps_in": "denominator"},
        lambda m, a, v: a @ v / (a.sum(2, keepdim=True) + 0.3),
    ),
    "weighted-sum": ({"eps": 0.3, "aggregation": "sum"}, lambda m, a, v: a @ v),
    "weighted-sum-layernorm": ({"eps": 0.3, "aggregation": "sum_norm"}, lambda m, a, v: m.norm_updates(a @ v)),
    "temperature-1": ({"scale": 1.0, "eps": 0.0}, lambda m, a, v: normalised(a) @ v),
}


@pytest.mark.parametrize(("options", "expected"), AGGREGATIONS.values(), ids=AGGREGATIONS)
def test_aggregations(options: dict[str, Any], expected: Any) -> None:
    module = perturb(SlotAttention(4, 6, 1, use_gru=False, use_mlp=False, **options).double())
    assert module.scale == options.get("scale", 6**-0.5)
    inputs, slots = normal(2, 9, 6), normal(2, 4, 6, seed=5)
    attn, values = one_iteration(module, inputs, slots)
    torch.testing.assert_close(module(inputs, slots_init=slots), expected(module, attn, values))


def test_softmax_over_inputs() -> None:
    options = {"softmax_over": "inputs", "aggregation": "sum", "use_gru": False, "use_mlp": False}
    module = perturb(SlotAttention(4, 6, 1, **options).double())
    inputs, slots = normal(2, 9, 6), normal(2, 4, 6, seed=5)
    logits = module.to_q(module.norm_slots(slots)) @ module.to_k(module.norm_input(inputs)).mT * 6**-0.5
    expected = logits.softmax(2) @ module.to_v(module.norm_input(inputs))
    torch.testing.assert_close(module(inputs, slots_init=slots), expected)


@pytest.mark.parametrize("use_gru", [True, False])
@pytest.mark.parametrize("use_mlp", [True, False])
def test_gru_and_mlp(use_gru: bool, use_mlp: bool) -> None:
    module = perturb(SlotAttention(4, 6, 1, use_gru=use_gru, use_mlp=use_mlp).double())
    inputs, slots = normal(2, 9, 6), normal(2, 4, 6, seed=5)
    attn, values = one_iteration(module, inputs, slots)
    expected = normalised(attn + 1e-8) @ values
    if use_gru:  # the hidden state is the slots before their LayerNorm
        expected = module.gru(expected.view(8, 6), slots.view(8, 6)).view(2, 4, 6)
    if use_mlp:
        expected = expected + module.mlp(module.norm_pre_ff(expected))
    torch.testing.assert_close(module(inputs, slots_init=slots), expected)


def test_soft_k_means() -> None:
    inputs, slots = normal(2, 9, 6), normal(2, 4, 6, seed=5)
    means = slots
    for _ in range(3):
        attn = (means @ inputs.mT / math.sqrt(6)).softmax(1) + 1e-8
        means = attn @ inputs / attn.sum(2, keepdim=True)
    module = SlotAttention(4, 6, **OFF).double()
    assert {name for name, _ in module.named_parameters()} == {"slots_mu", "slots_logsigma"}
    torch.testing.assert_close(module(inputs, slots_init=slots), means)


def test_no_layernorm() -> None:
    module = SlotAttention(4, 6, use_norm=False)
    assert not [name for name, _ in module.named_parameters() if "norm" in name]


@pytest.mark.parametrize("slot_init", ["shared", "per_slot", "vectors"])
def test_initial_slots(slot_init: str) -> None:
    """With no iteration, the slots are the initial ones."""
    module = perturb(SlotAttention(4, 6, 0, slot_init=slot_init))
    assert module.slots_mu.shape == (1, 1 if slot_init == "shared" else 4, 6)
    slots = module(normal(3, 9, 6).float(), generator=torch.Generator().manual_seed(2))
    expected = module.slots_mu.expand(3, 4, 6)
    if slot_init != "vectors":
        noise = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2))
        expected = expected + module.slots_logsigma.exp() * noise
    torch.testing.assert_close(slots, expected)


def test_given_noise_takes_the_place_of_the_draw() -> None:
    module, inputs = perturb(SlotAttention(4, 6)), normal(3, 9, 6).float()
    noise = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(2))
    state = torch.get_rng_state()
    given = module.initial_slots(inputs, 5, noise=noise)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(given, module.initial_slots(inputs, 5, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize(
    ("slot_init", "num_slots", "given", "says"),
    [
        ("shared", 4, {"noise": torch.zeros(3, 5, 6)}, r"noise must have shape \[B, K, D\] = \[3, 4, 6\], got"),
        ("shared", 4, {"noise": torch.zeros(3, 4, 6), "generator": torch.Generator()}, "got both; give one"),
        ("vectors", 4, {"noise": torch.zeros(3, 4, 6)}, "noise must be None with slot_init='vectors'"),
        ("per_slot", 5, {}, "num_slots must be 4 with slot_init='per_slot'.*got 5"),
        ("shared", 0, {}, "num_slots must be at least 1, got 0"),
    ],
)
def test_initial_slots_that_cannot_be(slot_init: str, num_slots: int, given: dict[str, Any], says: str) -> None:
    module = SlotAttention(4, 6, slot_init=slot_init)
    with pytest.raises(ValueError, match=says):
        module.initial_slots(normal(3, 9, 6).float(), num_slots, **given)


def test_vectors_take_no_noise() -> None:
    module = SlotAttention(4, 6, slot_init="vectors")
    assert not hasattr(module, "slots_logsigma")
    state = torch.get_rng_state()
    module(normal(3, 9, 6).float())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("options", "heads"), [({}, ()), (HEADS, (3,))])
def test_attention_of_every_iteration(options: dict[str, Any], heads: tuple[int, ...]) -> None:
    module = perturb(SlotAttention(4, 6, 5, eps=0.3, **options).double())
    inputs, slots_init = normal(2, 9, 6), normal(2, 4, 6, seed=5)
    every, over_slots = module(inputs, slots_init=slots_init, return_attn="all", return_all_slots=True)
    _, over_inputs = module(inputs, slots_init=slots_init, return_attn="all", attn_over="inputs")
    assert every.shape == (5, 2, 4, 6)
    assert over_slots.shape == over_inputs.shape == (5, 2, *heads, 4, 9)
    torch.testing.assert_close(over_slots.sum(-2), torch.ones(5, 2, *heads, 9).double())
    torch.testing.assert_close(over_inputs.sum(-1), torch.ones(5, 2, *heads, 4).double())
    for iters in range(1, 6):  # those of a shorter run
        last, attn = module(inputs, slots_init=slots_init, iters=iters, return_attn=True)
        torch.testing.assert_close(every[iters - 1], last)
        torch.testing.assert_close(over_slots[iters - 1], attn)


def test_masks() -> None:
    """A masked input or slot is one that is not there."""
    module = perturb(SlotAttention(4, 6, eps=0.1).double())
    inputs, slots_init = normal(2, 9, 6), normal(2, 4, 6, seed=5)
    mask, slot_mask = torch.arange(9).expand(2, 9) < 7, torch.arange(4).expand(2, 4) < 3
    padded = inputs.masked_fill(~mask[..., None], torch.nan)
    masks = {"mask": mask, "slot_mask": slot_mask}
    slots, attn = module(padded, slots_init=slots_init, **masks, return_attn=True)
    expected, expected_attn = module(inputs[:, :7], slots_init=slots_init[:, :3], return_attn=True)
    torch.testing.assert_close(slots[:, :3], expected)
    torch.testing.assert_close(attn[:, :3, :7], expected_attn)
    assert torch.equal(slots[:, 3:], slots_init[:, 3:])
    assert attn[:, 3:].abs().max() == attn[..., 7:].abs().max() == 0


def test_the_papers_settings() -> None:
    """Those of the paper's released code: no bias on q, k, v; LayerNorm epsilon 1e-3; TensorFlow's initialisation."""
    torch.manual_seed(0)
    module = SlotAttention.paper(7, input_dim=32)
    assert (module.num_slots, module.dim, module.input_dim, module.iters, module.eps) == (7, 64, 32, 3, 1e-8)
    assert module.mlp[0].out_features == 128
    parameters = dict(module.named_parameters())
    assert not [name for name in parameters if name in ("to_q.bias", "to_k.bias", "to_v.bias")]
    assert {layer.eps for layer in module.modules() if isinstance(layer, nn.LayerNorm)} == {1e-3}
    limits = {
        "slots_mu": math.sqrt(6 / (1 + 64)),
        "slots_logsigma": math.sqrt(6 / (1 + 64)),
        "to_q.weight": math.sqrt(6 / (64 + 64)),
        "to_k.weight": math.sqrt(6 / (32 + 64)),
        "gru.weight_ih": math.sqrt(6 / (64 + 3 * 64)),
        "mlp.0.weight": math.sqrt(6 / (64 + 128)),
    }
    for name, limit in limits.items():
        assert 0.8 * limit < parameters[name].abs().max() <= limit, name
    recurrent = module.gru.weight_hh  # [3 D, D] with orthonormal columns
    torch.testing.assert_close(recurrent.mT @ recurrent, torch.eye(64), atol=1e-5, rtol=0)
    for name, p in parameters.items():
        if "bias" in name:
            assert p.abs().max() == 0, name


def test_no_image() -> None:
    assert SlotAttention(4, 6)(torch.zeros(0, 9, 6)).shape == (0, 4, 6)
