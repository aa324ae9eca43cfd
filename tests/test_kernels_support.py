"""Which backend a call takes, and why the Triton kernels cannot serve one."""

from collections.abc import Iterator
from importlib import metadata

import pytest
import torch
from slotattn_fast.kernels import support

from slotattn_fast import SlotAttention, explain_backend


@pytest.fixture(autouse=True)
def _no_memory() -> Iterator[None]:
    """The installed version is looked up once a process; each test here wants its own answer."""
    support._why_not_installed.cache_clear()
    yield
    support._why_not_installed.cache_clear()


def test_auto_takes_torch_on_a_cpu_and_says_why() -> None:
    backend = explain_backend(torch.zeros(2, 3, 4))
    assert backend.name == "torch"
    assert "'cpu'" in backend.reason
    assert "CUDA or ROCm" in backend.reason
    assert explain_backend(torch.zeros(2, 3, 4), "torch").name == "torch"


def test_triton_on_a_cpu_raises_with_the_reason() -> None:
    message = r"backend=\"triton\" cannot serve this call.*'cpu'.*use backend=\"auto\" or \"torch\""
    with pytest.raises(RuntimeError, match=message):
        explain_backend(torch.zeros(2, 3, 4), "triton")
    with pytest.raises(RuntimeError, match=message):
        SlotAttention(3, 4, backend="triton")(torch.zeros(2, 3, 4))


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', 'triton', 'torch', got 'cuda'"):
        explain_backend(torch.zeros(2, 3, 4), "cuda")
    with pytest.raises(ValueError, match=r"backend must be one of.*got 'cuda'"):
        SlotAttention(3, 4, backend="cuda")


def test_triton_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert support.why_not("cuda") == "Triton is not installed, and the kernels need 3.6 or newer"


@pytest.mark.parametrize("version", ["2.3.1", "3.5.9"])
def test_triton_too_old(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert support.why_not("cuda") == f"Triton {version} is installed, and the kernels need 3.6 or newer"


@pytest.mark.parametrize("version", ["3.6.0", "3.10.0", "3.9.0+git1234", "4.0"])
def test_triton_new_enough(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert "is installed" not in support.why_not("cuda")
