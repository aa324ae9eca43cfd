"""The kernels of the absorbed projections, interpreted, against `slot_update.absorb` in float64."""

from dataclasses import dataclass

import pytest
import torch
from compare import assert_error_at_most_twice, normal
from slotattn_fast.kernels.arguments import Projections
from torch import Tensor

from slotattn_fast import slot_update

pytest.importorskip("triton")
from slotattn_fast.kernels import slot_ops as kernels

SCALE = 0.3


@dataclass(frozen=True)
class Case:
    """One stressed axis; everything else is small, and the widths are no powers of two."""

    id: str
    dim: int = 24
    input_dim: int = 20
    heads: int = 1
    dim_head: int = 24
    after: int = 72  # what follows the values: three gates of a GRU, say
    biases: bool = True
    norm: bool = True


CASES = [
    Case("plain"),
    *(Case(f"slots-width-{D}", dim=D, after=3 * D) for D in (1, 16, 128)),
    *(Case(f"inputs-width-{D}", input_dim=D) for D in (1, 16, 64, 128)),
    Case("heads", heads=3, dim_head=5),
    Case("heads-8-wide", heads=8, dim_head=16, dim=128, input_dim=128),
    Case("no-gru", after=24),
    Case("no-biases", biases=False),
    Case("no-norm", norm=False),
    Case("k-means-like", biases=False, norm=False),
]


def projections(case: Case) -> Projections:
    inner = case.heads * case.dim_head

    def matrix(rows: int, columns: int, seed: int) -> Tensor:
        return normal(rows, columns, seed=seed) / columns**0.5

    def bias(seed: int) -> Tensor | None:
        return normal(inner, seed=seed) if case.biases else None

    return Projections(
        to_q=matrix(inner, case.dim, 1),
        to_q_bias=bias(2),
        to_k=matrix(inner, case.input_dim, 3),
        to_k_bias=bias(4),
        to_v=matrix(inner, case.input_dim, 5),
        to_v_bias=bias(6),
        norm_input=normal(2, case.input_dim, seed=7) + 0.5 if case.norm else None,
        after=matrix(case.after, inner, 8),
    )


def named(p: Projections) -> dict[str, Tensor]:
    return {name: x for name, x in p._asdict().items() if x is not None}


def by_autograd(p: Projections, heads: int, d_outputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What the functions of `slot_update` give in the precision of `p`: outputs, and the gradients by names."""
    wanted = {name: x.detach().clone().requires_grad_() for name, x in named(p).items()}
    outputs = slot_update.absorb(p._replace(**wanted), heads, SCALE)
    loss = sum((x * d.to(x.dtype)).sum() for x, d in zip(outputs, d_outputs, strict=True))
    grads = torch.autograd.grad(loss, list(wanted.values()))
    return dict(zip(("query", "query_bias", "value"), (x.detach() for x in outputs), strict=True)) | dict(
        zip(wanted, grads, strict=True)
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_equals_slot_update(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    p = projections(case)
    single = Projections._make(None if x is None else x.float() for x in p)
    shapes = [x.shape for x in slot_update.absorb(p, case.heads, SCALE)]
    d_outputs = tuple(normal(*shape, seed=20 + i) for i, shape in enumerate(shapes))

    new_empty, empty_like = Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(torch.nan))
    outputs = kernels.absorb(single, case.heads, SCALE)
    grads = kernels.absorb_backward(*(x.float() for x in d_outputs), single, case.heads, SCALE)
    monkeypatch.undo()

    found = dict(zip(("query", "query_bias", "value"), outputs, strict=True)) | named(grads)
    exact, plain = by_autograd(p, case.heads, d_outputs), by_autograd(single, case.heads, d_outputs)
    assert_error_at_most_twice(found, plain, exact)


def test_takes_transposed_weights_and_gradients() -> None:
    case = Case("plain")
    p = Projections._make(None if x is None else x.float() for x in projections(case))
    across = Projections._make(x.mT.contiguous().mT if x is not None and x.dim() == 2 else x for x in p)
    outputs = kernels.absorb(p, 1, SCALE)
    for x, want in zip(kernels.absorb(across, 1, SCALE), outputs, strict=True):
        assert torch.equal(x, want)
    expanded = [x.new_ones(()).expand_as(x) for x in outputs]
    found = kernels.absorb_backward(*expanded, across, 1, SCALE)
    want = kernels.absorb_backward(*(x.contiguous() for x in expanded), p, 1, SCALE)
    for x, y in zip(named(found).values(), named(want).values(), strict=True):
        assert torch.equal(x, y)
