"""The set predictor: against the reference, its loss by hand, its variants, and what it refuses."""

import inspect
import itertools
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from compare import Results, assert_error_at_most_twice, assert_same, normal, perturb
from slotattn_fast.reference import SetPredictor
from torch import Tensor, nn

from slotattn_fast.data.properties import NUM_FEATURES
from slotattn_fast.models.property import PropertyPrediction, set_loss
from slotattn_fast.models.property_config import PropertyConfig

TINY = PropertyConfig(
    image_size=12,  # even, so that stride 2 pads unevenly
    encoder_channels=8,
    encoder_strides=(2, 1),
    num_slots=4,
    slot_dim=8,
    hidden_dim=8,
    classifier_dim=16,
)
SLOT_MLP = replace(TINY, grouping="slot-mlp")
IMAGES = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1
NOISE = normal(3, 4, 8)


def random_targets(B: int, K: int, seed: int = 4) -> Tensor:
    """[B, K, 19] in float64: of image b, b + 1 rows that are not padding."""
    values = torch.rand(B, K, NUM_FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.masked_fill(torch.arange(K)[:, None] > torch.arange(B)[:, None, None], 0)


TARGETS = random_targets(3, 4)


def by_hand(predictions: Tensor, targets: Tensor, scale: float = 1) -> Tensor:
    """The loss by trying every assignment; the coordinates are the first three features."""
    scales = torch.tensor([scale] * 3 + [1] * 16, dtype=predictions.dtype)
    total = torch.zeros((), dtype=predictions.dtype)
    for predicted, true in zip(predictions * scales, targets * scales, strict=True):
        costs = []
        for order in itertools.permutations(range(len(true))):
            off = (predicted[list(order)] - true).abs()
            costs.append(torch.where(off < 1, off.square() / 2, off - 0.5).mean(-1).sum())
        total = total + min(costs)
    return total / len(predictions)


def tiny(config: PropertyConfig = TINY) -> PropertyPrediction:
    torch.manual_seed(0)
    return perturb(PropertyPrediction(config)).double()


def taken(model: nn.Module, dtype: torch.dtype) -> Results:
    """What the model predicts, its loss, and the gradients of that."""
    model = model.to(dtype)
    images, targets, noise = (x.to(dtype) for x in (IMAGES, TARGETS, NOISE))
    loss = model.loss(images, targets, noise)
    named = dict(model.named_parameters())
    gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    return {"predictions": model(images, noise=noise).detach(), "loss": loss.detach(), **gradients}


def test_against_the_reference() -> None:
    fields = inspect.signature(SetPredictor).parameters
    plain, fast = SetPredictor(**{name: getattr(TINY, name) for name in fields}), tiny()
    plain.load_state_dict(fast.state_dict())
    exact = taken(plain, torch.float64)
    assert_same(taken(fast, torch.float64), exact, 1e-10)
    assert_error_at_most_twice(taken(fast, torch.float32), taken(plain, torch.float32), exact)


def test_the_papers_sizes_and_parameters() -> None:
    defaults = {name: p.default for name, p in inspect.signature(SetPredictor).parameters.items()}
    assert asdict(PropertyConfig()) == {**asdict(PropertyConfig()), **defaults}
    model, plain = PropertyPrediction(PropertyConfig()), SetPredictor()
    plain.load_state_dict(model.state_dict())
    assert model.encoder.size == 32
    # Appendix E.1 and E.4 and Algorithm 1, weights and biases summed by hand.
    parts = (model.encoder, model.slot_attention, model.classifier)
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [321_024, 54_336, 64 * 65 + 65 * 19]
    # Last, as Adam keeps its moments in this order.
    assert [name for name, _ in model.named_parameters()][-4:] == [
        f"classifier.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    ]
    for made in (model, plain):
        limit = (6 / (64 + 19)) ** 0.5
        assert 0.9 * limit < made.classifier[2].weight.abs().max() <= limit
        assert not made.classifier[0].bias.any()
        assert not made.classifier[2].bias.any()


@pytest.mark.parametrize("scale", [1, 3.5])
def test_the_loss_by_hand(scale: float) -> None:
    predictions = torch.rand(3, 4, NUM_FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predictions.requires_grad_()
    loss, expected = set_loss(predictions, TARGETS, scale), by_hand(predictions, TARGETS, scale)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, predictions), torch.autograd.grad(expected, predictions))
    model = tiny(replace(TINY, coordinate_scale=scale))
    torch.testing.assert_close(model.loss(IMAGES, TARGETS, NOISE), by_hand(model(IMAGES, noise=NOISE), TARGETS, scale))


def test_padding_is_to_be_predicted_too() -> None:
    true, spare = torch.eye(NUM_FEATURES)[:1], torch.full((1, NUM_FEATURES), 0.5)
    targets = torch.stack([torch.cat([true, torch.zeros_like(true)])])
    assert set_loss(torch.stack([torch.cat([spare, true])]), targets).item() == 0.5**2 / 2


def test_neither_the_order_of_targets_nor_of_slots_counts() -> None:
    model, order = tiny(), torch.tensor([2, 0, 3, 1])
    loss = model.loss(IMAGES, TARGETS, NOISE)
    torch.testing.assert_close(model.loss(IMAGES, TARGETS[:, order], NOISE), loss)
    torch.testing.assert_close(model.loss(IMAGES, TARGETS, NOISE[:, order]), loss)
    predictions = model(IMAGES, noise=NOISE)
    torch.testing.assert_close(model(IMAGES, noise=NOISE[:, order]), predictions[:, order])
    assert (predictions - predictions[:, order]).abs().max() > 1e-3


def test_the_stepwise_loss_is_the_mean_over_the_iterations() -> None:
    model = tiny(replace(TINY, stepwise=True))
    parameters = list(model.parameters())
    found = model.loss(IMAGES, TARGETS, NOISE)
    every = [by_hand(model(IMAGES, iters=iters, noise=NOISE), TARGETS) for iters in (1, 2, 3)]
    expected = sum(every) / 3
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters))
    assert (found - every[-1]).abs() > 1e-6


def test_noise_is_drawn_where_none_is_given() -> None:
    for config in (TINY, replace(TINY, stepwise=True)):
        model = tiny(config)
        torch.manual_seed(5)
        drawn = model.loss(IMAGES, TARGETS)
        torch.manual_seed(5)
        torch.testing.assert_close(drawn, model.loss(IMAGES, TARGETS, torch.randn(3, 4, 8, dtype=torch.float64)))
    given = model(IMAGES, noise=torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert torch.equal(model(IMAGES, generator=torch.Generator().manual_seed(1)), given)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_give_such_a_loss(value: float) -> None:
    predictions = torch.rand(3, 4, NUM_FEATURES, requires_grad=True)
    spoilt = predictions + torch.zeros_like(predictions).index_put(
        (torch.tensor(1), torch.tensor(2)), torch.tensor(value)
    )
    loss = set_loss(spoilt, TARGETS.float())
    assert not loss.isfinite()
    loss.backward()


@pytest.mark.parametrize("stepwise", [False, True])
def test_weights_that_are_not_finite_give_such_a_loss(stepwise: bool) -> None:
    model = tiny(replace(TINY, stepwise=stepwise))
    nn.init.constant_(model.encoder.mlp[1].weight, float("nan"))
    assert model.loss(IMAGES, TARGETS, NOISE).isnan()


def test_other_slots_and_iterations_than_in_training() -> None:
    model, more = tiny(), normal(3, 6, 8)
    found = model(IMAGES, num_slots=6, iters=5, noise=more)
    other = tiny(replace(TINY, num_slots=6, iters=5))
    other.load_state_dict(model.state_dict())
    assert found.shape == (3, 6, NUM_FEATURES)
    assert torch.equal(found, other(IMAGES, noise=more))
    assert 0 < found.min() < found.max() < 1


def test_iterations_end_with_what_is_predicted() -> None:
    model = tiny()
    steps = model.iterations(IMAGES, noise=NOISE)
    assert steps.predictions.shape == (3, 3, 4, NUM_FEATURES)
    assert steps.attention.shape == (3, 3, 4, 6, 6)
    for iters in (1, 2, 3):
        torch.testing.assert_close(steps.predictions[iters - 1], model(IMAGES, iters=iters, noise=NOISE))
    torch.testing.assert_close(steps.attention.sum(2), torch.ones(3, 3, 6, 6, dtype=torch.float64))
    assert not steps.predictions.requires_grad
    more = model.iterations(IMAGES, 2, num_slots=5, generator=torch.Generator().manual_seed(2))
    expected = model(IMAGES, iters=2, num_slots=5, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(more.predictions[-1], expected)


def test_the_baseline_takes_the_place_of_slot_attention() -> None:
    model = tiny(SLOT_MLP)
    assert not hasattr(model, "slot_attention")
    assert model.noise_shape(3) is None
    expected = model.classifier(model.slot_mlp(model.encoder(IMAGES)))
    assert torch.equal(model(IMAGES), expected)
    loss = model.loss(IMAGES, TARGETS)
    torch.testing.assert_close(loss, by_hand(expected, TARGETS))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    for call, says in (
        (lambda: model.loss(IMAGES, TARGETS, NOISE), "noise: got a tensor, expected None"),
        (lambda: model(IMAGES, num_slots=5), "num_slots: got 5, expected none"),
        (lambda: model(IMAGES, iters=1), "iters: got 1, expected none"),
        (lambda: model.iterations(IMAGES), "iterations: got a model with grouping='slot-mlp'"),
    ):
        with pytest.raises(ValueError, match=says):
            call()


def test_the_loss_is_float32_under_autocast() -> None:
    model = tiny().float()
    images, targets, noise = (x.float() for x in (IMAGES, TARGETS, NOISE))
    exact = model.loss(images, targets, noise)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images, noise=noise).dtype == torch.bfloat16
        loss = model.loss(images, targets, noise)
    assert exact.dtype == loss.dtype == torch.float32
    assert 0 < (loss - exact).abs() < 0.01 * exact
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    rounded = torch.rand(3, 4, NUM_FEATURES, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(set_loss(rounded, targets), set_loss(rounded.float(), targets))


@pytest.mark.parametrize("config", [TINY, replace(TINY, stepwise=True), SLOT_MLP], ids=["last", "stepwise", "slot-mlp"])
def test_the_loss_is_one_graph_of_the_compiler(config: PropertyConfig) -> None:
    torch.compiler.reset()
    model = tiny(config)
    given = (IMAGES, TARGETS) if config is SLOT_MLP else (IMAGES, TARGETS, NOISE)
    parameters = list(model.parameters())
    expected = model.loss(*given)
    found = torch.compile(model.loss, backend="aot_eager", fullgraph=True)(*given)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters))


def test_shapes_that_do_not_fit() -> None:
    model = tiny()
    for call, says in (
        (lambda: model(IMAGES[..., 1:]), r"images: got shape \(3, 3, 12, 11\), expected \[B, 3, 12, 12\]"),
        (lambda: model(IMAGES, noise=NOISE[1:]), r"noise must have shape \[B, K, D\] = \[3, 4, 8\], got \[2, 4, 8\]"),
        (
            lambda: model.loss(IMAGES, TARGETS[:, 1:], NOISE),
            r"targets: got shape \[3, 3, 19\] for predictions \[3, 4, 19\], expected both \[B, K, 19\]",
        ),
        (lambda: set_loss(TARGETS[..., 1:], TARGETS[..., 1:]), r"expected both \[B, K, 19\]"),
        (lambda: model.iterations(IMAGES, 0), "iters: got 0, expected at least 1"),
    ):
        with pytest.raises(ValueError, match=says):
            call()


def test_the_configuration_needs_no_torch() -> None:
    code = "import sys, slotattn_fast.models.property_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"coordinate_scale": 0}, ValueError, "coordinate_scale: got 0, expected a number from 1e-6 to 1e6"),
        ({"coordinate_scale": float("inf")}, ValueError, "coordinate_scale: got inf, expected a number"),
        ({"coordinate_scale": True}, ValueError, "coordinate_scale: got True, expected a number"),
        ({"stepwise": 1}, TypeError, "stepwise: got 1, expected True or False"),
        ({"stepwise": True, "implicit": True}, ValueError, "stepwise: got True, expected False with implicit=True"),
        (
            {"stepwise": True, "grouping": "slot-mlp"},
            ValueError,
            "stepwise: got True, expected False with grouping='slot-mlp'",
        ),
        ({"classifier_dim": 0}, ValueError, "classifier_dim: got 0, expected"),
        ({"classifier_dim": 8.0}, (TypeError, ValueError), r"classifier_dim: got 8\.0, expected"),
        ({"encoder_strides": ()}, ValueError, "encoder_strides: got"),
        ({"slot_init": "vectors"}, ValueError, "slot_init: got 'vectors', expected one of 'shared', 'per_slot'"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        replace(TINY, **changes)
