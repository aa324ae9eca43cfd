"""One training step: its optimiser, and on a GPU that the step in a CUDA graph is the one that is launched by kernel.

TRITON_INTERPRET=0 pytest -m gpu tests/test_step.py
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch
from compare import DEVICE
from torch import Tensor, nn

pytest.importorskip("lightning_fabric")
from lightning_fabric import Fabric

from slotattn_fast.models.discovery import ObjectDiscovery
from slotattn_fast.models.discovery_config import DiscoveryConfig
from slotattn_fast.train.step import (
    Batch,
    Step,
    eager_step,
    graphed_step,
    make_adam,
    restore_adam,
    set_learning_rate,
)

needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="no GPU, or TRITON_INTERPRET is not 0")
RATES = (0.0, 1e-3, 4e-3, 2e-3, 1e-4)
CAPTURE_RATE = 0.1  # so that its warm-up leaves traces, if any
Precision = Literal["32-true", "bf16-mixed"]
TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 2e-2}


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = DiscoveryConfig(
            image_size=16,
            encoder_channels=32,
            encoder_strides=(1, 2),
            num_slots=3,
            slot_dim=32,
            hidden_dim=32,
            decoder_channels=32,
            decoder_strides=(2, 1),
            broadcast_size=8,
        )
        self.model = ObjectDiscovery(config).to(memory_format=torch.channels_last)

    def forward(self, batch: Batch) -> Tensor:
        return self.model.loss(batch["images"].float() / 127.5 - 1, batch["noise"])


class Trained:
    """A model with its optimiser, and what it is when a step begins."""

    def __init__(self, precision: Precision, capturable: bool, saved: tuple[Any, Any] | None = None) -> None:
        self.loss = Loss().to(DEVICE)
        self.optimizer = make_adam(self.loss, CAPTURE_RATE, capturable=capturable)
        if saved is not None:
            self.loss.load_state_dict(saved[0])
            restore_adam(self.optimizer, saved[1])
        self.fabric = Fabric(accelerator=DEVICE, devices=1, precision=precision)
        self.setup = self.fabric.setup(self.loss, self.optimizer)

    def eager(self) -> Step:
        return eager_step(self.fabric, *self.setup)

    def graphed(self) -> Step:
        return graphed_step(self.fabric, *self.setup, batch(0))

    def train(self, step: Step, numbers: range) -> list[float]:
        losses = []
        for number in numbers:
            set_learning_rate(self.optimizer, RATES[number % len(RATES)])
            losses.append(step(batch(number)))
        return [loss.item() for loss in losses]

    def state(self) -> dict[str, Tensor]:
        """Weights, and what Adam keeps, by name; copied."""
        found = {name: p.detach().clone() for name, p in self.loss.named_parameters()}
        for name, p in self.loss.named_parameters():
            found |= {f"{key} of {name}": value.clone() for key, value in self.optimizer.state.get(p, {}).items()}
        return found

    def saved(self) -> tuple[Any, Any]:
        """As a checkpoint has it: on the CPU."""
        optimizer = self.optimizer.state_dict()
        moments = {i: {key: x.cpu().clone() for key, x in each.items()} for i, each in optimizer["state"].items()}
        return {name: x.cpu().clone() for name, x in self.loss.state_dict().items()}, {**optimizer, "state": moments}


def batch(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(256, (4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return {"images": images.to(DEVICE), "noise": torch.randn(4, 3, 32, generator=generator).to(DEVICE)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """All weights together, in parts of the way that they went, and all first and second moments, in the norm.

    Not tensor by tensor: Adam makes whole steps of the rounding errors where a gradient is 0 in exact arithmetic.
    """
    assert found.keys() == expected.keys()
    start = dict(Loss().named_parameters())

    def joined(state: Mapping[str, Tensor], kind: str = "") -> Tensor:
        return torch.cat([state[kind + name].detach().cpu().flatten() for name in start])

    way = {"": joined(expected) - joined(start)}
    way |= {kind: joined(expected, kind) for kind in ("exp_avg of ", "exp_avg_sq of ")}
    for kind, whole in way.items():
        error = joined(found, kind) - joined(expected, kind)
        assert error.norm() <= tolerance * whole.norm(), (kind, error.norm() / whole.norm())


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that two runs of the same steps take the same algorithms, whose sums have an order."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Raises where the device is waited for."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_step_in_a_graph_is_the_eager_one(precision: Precision) -> None:
    """Over batches and rates other than those of the capture."""
    graphed, eager = Trained(precision, capturable=True), Trained(precision, capturable=False)
    before = graphed.state()
    step = graphed.graphed()
    assert all(torch.equal(graphed.state()[name], weight) for name, weight in before.items())
    moments = [value for state in graphed.optimizer.state.values() for value in state.values()]
    assert moments
    assert not any(value.any() for value in moments)
    first = graphed.train(step, range(len(RATES)))
    expected = eager.train(eager.eager(), range(len(RATES)))
    assert len(set(first)) == len(RATES)
    torch.testing.assert_close(first, expected, rtol=TOLERANCE[precision], atol=0)
    assert_same(graphed.state(), eager.state(), TOLERANCE[precision])
    assert {int(state["step"]) for state in graphed.optimizer.state.values()} == {len(RATES)}


@pytest.mark.gpu
@needs_gpu
def test_a_step_at_rate_zero_leaves_the_weights() -> None:
    """As the first step of a warm-up does: the rate of the replay counts, not that of the capture."""
    trained = Trained("32-true", capturable=True)
    step = trained.graphed()
    before = [p.clone() for p in trained.loss.parameters()]
    trained.train(step, range(1))
    assert all(torch.equal(p, old) for p, old in zip(trained.loss.parameters(), before, strict=True))
    trained.train(step, range(1, 2))
    assert any((p != old).any() for p, old in zip(trained.loss.parameters(), before, strict=True))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("began", ["eager", "graphed"])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_run_goes_on_in_a_graph(precision: Precision, began: str) -> None:
    """From a checkpoint of either kind of step, with weights and moments unchanged by the capture."""
    uncut = Trained(precision, capturable=began == "graphed")
    step = uncut.graphed() if began == "graphed" else uncut.eager()
    uncut.train(step, range(4))
    resumed = Trained(precision, True, uncut.saved())
    restored = resumed.state()
    assert all(torch.equal(x, restored[name]) for name, x in uncut.state().items())
    graphed = resumed.graphed()
    assert all(torch.equal(x, restored[name]) for name, x in resumed.state().items())
    expected = uncut.train(step, range(4, 8))
    found = resumed.train(graphed, range(4, 8))
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[precision], atol=0)
    assert_same(resumed.state(), uncut.state(), TOLERANCE[precision])


@pytest.mark.gpu
@needs_gpu
def test_the_loss_of_a_step_stays_when_the_next_is_replayed() -> None:
    trained = Trained("32-true", capturable=True)
    step = trained.graphed()
    set_learning_rate(trained.optimizer, 1e-3)
    first = step(batch(0))
    before = first.item()
    second = step(batch(1))
    assert first.item() == before != second.item()


@pytest.mark.gpu
@needs_gpu
def test_a_replay_does_not_wait_for_the_device() -> None:
    trained = Trained("bf16-mixed", capturable=True)
    step, given = trained.graphed(), batch(1)
    with nothing_waits():
        set_learning_rate(trained.optimizer, 1e-3)
        step(given)


def test_adam_is_the_papers() -> None:
    """Section 4: no weight decay, every learned parameter."""
    loss = Loss()
    loss.model.encoder.requires_grad_(False)
    (group,) = make_adam(loss, 3e-4, capturable=False).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (3e-4, (0.9, 0.999), 1e-8, 0)
    assert len(group["params"]) == sum(p.requires_grad for p in loss.parameters()) < len(list(loss.parameters()))


def test_the_rate_of_a_capturable_adam_changes_in_place() -> None:
    (group,) = (optimizer := make_adam(nn.Linear(2, 2), 3e-4, capturable=True)).param_groups
    rate = group["lr"]
    assert isinstance(rate, Tensor)
    assert rate.item() == pytest.approx(3e-4)
    set_learning_rate(optimizer, 1e-4)
    assert group["lr"] is rate
    assert rate.item() == pytest.approx(1e-4)


def test_the_rate_of_another_adam_is_a_number() -> None:
    optimizer = make_adam(nn.Linear(2, 2), 3e-4, capturable=False)
    set_learning_rate(optimizer, 1e-4)
    assert optimizer.param_groups[0]["lr"] == 1e-4
    assert not optimizer.param_groups[0]["capturable"]


@pytest.mark.parametrize("before", [False, True], ids=["from-eager", "from-graph"])
@pytest.mark.parametrize("now", [False, True], ids=["to-eager", "to-graph"])
def test_a_restored_adam_keeps_its_own_settings(now: bool, before: bool) -> None:
    """So that a run can go on with a graph, or without; moments and counts are those of the checkpoint."""
    saving, model = nn.Linear(2, 3), nn.Linear(2, 3)
    saved = make_adam(saving, 1e-2, capturable=False)
    saving(torch.ones(1, 2)).sum().backward()
    saved.step()
    state = saved.state_dict()
    if before:
        state["param_groups"][0] |= {"capturable": True, "lr": torch.tensor(1e-2)}
    optimizer = make_adam(model, 3e-4, capturable=now)
    restore_adam(optimizer, state)
    (group,) = optimizer.param_groups
    assert group["capturable"] == now
    assert isinstance(group["lr"], Tensor) == now
    assert float(group["lr"]) == pytest.approx(3e-4)
    for p, other in zip(model.parameters(), saving.parameters(), strict=True):
        assert optimizer.state[p].keys() == saved.state[other].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name, value in saved.state[other].items():
            assert torch.equal(optimizer.state[p][name], value)


@pytest.mark.skipif(DEVICE != "cpu", reason="for the CPU")
def test_an_eager_step_is_that_of_a_plain_loop() -> None:
    trained, plain = Trained("32-true", capturable=False), Trained("32-true", capturable=False)
    losses = trained.train(trained.eager(), range(len(RATES)))
    plain.optimizer = torch.optim.Adam(plain.loss.parameters())
    for number, (rate, loss) in enumerate(zip(RATES, losses, strict=True)):
        plain.optimizer.param_groups[0]["lr"] = rate
        plain.optimizer.zero_grad()
        expected = plain.loss(batch(number))
        expected.backward()
        plain.optimizer.step()
        assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_same(trained.state(), plain.state(), 1e-3)
    assert all(p.grad is None for p in trained.loss.parameters())


@pytest.mark.skipif(DEVICE != "cpu", reason="for the CPU")
def test_a_run_that_goes_on_is_bit_identical_on_a_cpu() -> None:
    uncut = Trained("bf16-mixed", capturable=False)
    uncut.train(uncut.eager(), range(4))
    resumed = Trained("bf16-mixed", False, uncut.saved())
    for trained in (uncut, resumed):
        trained.train(trained.eager(), range(4, 8))
    assert all(torch.equal(x, resumed.state()[name]) for name, x in uncut.state().items())
