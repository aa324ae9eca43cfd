"""Which backend a call takes, and why the Triton kernels cannot serve one."""

from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import pytest
import torch
from slotattn_fast.kernels import support
from slotattn_fast.kernels.launch import MAX_QUERY_BYTES, query_bytes

from slotattn_fast import SlotAttention, explain_backend
from slotattn_fast.train.environment import installed_version


@pytest.fixture(autouse=True)
def _no_memory() -> Iterator[None]:
    """The installed version is looked up once a process; each test here wants its own answer."""
    support._why_not_installed.cache_clear()
    yield
    support._why_not_installed.cache_clear()


SERVED = (torch.device("cuda"), torch.bfloat16, 64, 7, 1, "slots", "mean")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the GPU one of this capability with so much shared memory for a program."""

    def set_to(capability: tuple[int, int] | None, shared_bytes: int = 227 << 10) -> None:
        monkeypatch.setattr(support, "_limits", lambda device: (capability, query_bytes(shared_bytes)))

    set_to((9, 0))
    return set_to


def test_auto_takes_torch_on_a_cpu_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for interpreted in ("0", "1"):
        monkeypatch.setenv("TRITON_INTERPRET", interpreted)
        backend = explain_backend(torch.zeros(2, 3, 4))
        assert backend.name == "torch"
        assert "'cpu'" in backend.reason
    assert explain_backend(torch.zeros(2, 3, 4), "torch").name == "torch"


def test_triton_on_a_cpu_raises_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    message = r"backend=\"triton\" cannot serve this call.*'cpu'.*CUDA or ROCm.*use backend=\"auto\" or \"torch\""
    with pytest.raises(RuntimeError, match=message):
        explain_backend(torch.zeros(2, 3, 4), "triton")
    with pytest.raises(RuntimeError, match=message):
        SlotAttention(3, 4, backend="triton")(torch.zeros(2, 3, 4))


def test_triton_on_a_cpu_in_the_interpreter() -> None:
    assert explain_backend(torch.zeros(2, 3, 4), "triton").name == "triton"


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({"softmax_over": "inputs", "aggregation": "sum"}, {}, "softmax_over='inputs'.*softmax over the slots alone"),
        ({"aggregation": "sum_norm"}, {}, "aggregation='sum_norm'.*weighted mean and the weighted sum"),
        ({}, {"num_slots": 65}, "num_slots=65 with heads=1 .*64 slots at most"),
        ({"heads": 4}, {"num_slots": 17}, "num_slots=17 with heads=4 .*16 slots at most"),
        ({"input_dim": 500}, {"num_slots": 17}, "num_slots=17 .*width 500 in torch.float32, .*16 slots at most"),
        ({"input_dim": 513}, {}, "width 513.*512 at most"),
    ],
)
def test_what_the_kernels_do_not_serve(options: dict[str, Any], call: dict[str, Any], message: str) -> None:
    """Named, they raise with the reason; "auto" takes the other backend."""
    module = SlotAttention(3, 4, backend="triton", **options)
    inputs = torch.zeros(2, 3, module.input_dim)
    with pytest.raises(RuntimeError, match=message):
        module(inputs, **call)
    module.backend = "auto"
    module(inputs, **call)


def test_float64_is_not_served() -> None:
    with pytest.raises(RuntimeError, match=r"the inputs are torch.float64, and the kernels compute in float32"):
        explain_backend(torch.zeros(2, 3, 4, dtype=torch.float64), "triton")


def test_what_the_kernels_serve(gpu: Callable[..., None]) -> None:
    assert support.why_not(*SERVED) is None
    gpu((8, 0), 163 << 10)
    assert support.why_not(*SERVED) is None
    gpu(None)  # AMD
    assert support.why_not(*SERVED) is None


def test_a_gpu_that_is_too_old(gpu: Callable[..., None]) -> None:
    gpu((7, 5), 64 << 10)
    told = "the inputs are on a GPU of compute capability 7.5, and the kernels need 8.0 or newer"
    assert support.why_not(*SERVED) == told


def test_a_gpu_with_little_shared_memory(gpu: Callable[..., None]) -> None:
    """benchmarks.aot compiles the most that it is said to take."""
    wide = (*SERVED[:2], 512, 17, *SERVED[4:])
    gpu((8, 9), 99 << 10)
    assert support.why_not(*SERVED) is None
    assert str(support.why_not(*wide)).endswith("with which the kernels take 16 slots at most on this GPU")
    gpu((9, 0))
    assert support.why_not(*wide) is None


def test_a_cpu_has_the_limits_of_the_largest() -> None:
    assert support._limits(torch.device("cpu")) == (None, MAX_QUERY_BYTES)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', 'triton', 'torch', got 'cuda'"):
        explain_backend(torch.zeros(2, 3, 4), "cuda")
    with pytest.raises(ValueError, match=r"backend must be one of.*got 'cuda'"):
        SlotAttention(3, 4, backend="cuda")


@pytest.mark.usefixtures("gpu")
def test_triton_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    assert support.why_not(*SERVED) == "Triton is not installed, and the kernels need 3.6 or newer"


@pytest.mark.usefixtures("gpu")
def test_triton_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"pytorch-triton-rocm": "3.5.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"triton": ["pytorch-triton-rocm"]})
    assert support.why_not(*SERVED) == "Triton 3.5.1 is installed, and the kernels need 3.6 or newer"
    assert installed_version("triton") == "3.5.1"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("version", ["2.3.1", "3.5.9"])
def test_triton_too_old(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert support.why_not(*SERVED) == f"Triton {version} is installed, and the kernels need 3.6 or newer"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("version", ["3.6.0", "3.10.0", "3.9.0+git1234", "4.0"])
def test_triton_new_enough(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert support.why_not(*SERVED) is None
