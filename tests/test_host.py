"""The launching time of a call: Triton's kernels are all reached and none runs."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks import host
from benchmarks.conditions import read_rows
from benchmarks.measure import Sample

COUNTED = """
import torch
from benchmarks import contenders, host, module

launched = []
host._Kernel.run = lambda self, *arguments: launched.append(1)
call = contenders.make("torch", contenders.problem(module.shape_of(*host.SIZES, torch.float32), "forward+backward"))
with host.without_kernels():
    call()
print(len(launched))
"""

COMPILED = """
from unittest.mock import patch

import torch
from slotattn_fast.kernels import ops, slot_ops
from triton.runtime.jit import JITFunction

from benchmarks import host
from slotattn_fast import SlotAttention

found = []
module = SlotAttention(7, 64, backend="triton").bfloat16()
with host.without_kernels():
    compile = JITFunction._do_compile

    def counted(self, *arguments, **options):
        found.append(self)
        return compile(self, *arguments, **options)

    for of in (ops, slot_ops):
        of.multiprocessors = lambda device: 132
    with patch.object(JITFunction, "_do_compile", counted):
        for images in (64, 37, 1, 50):
            module(torch.zeros(images, 1024, 64, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
            print(len(found))
"""


def compiled(*arguments: str) -> str:
    """What a process prints in which Triton does not interpret."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_kernel_is_launched() -> None:
    # The projections, the first query and their gradients, the weights; both ways, T times inputs and slots.
    assert compiled("-c", COUNTED).split() == [str(2 + 2 + 1 + 4 * 3)]


def test_a_batch_of_another_size_compiles_nothing() -> None:
    """Where the partial sums that are loaded at once are as many, and the statistics of an image as well aligned."""
    first, *others = compiled("-c", COMPILED).split()
    assert 10 < int(first) < 20
    assert others == [first] * 3


def test_each_has_its_own_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_ms = {"torch": 1.0, "reference": 2.0}

    def samples(calls: dict[str, str], rounds: int) -> dict[str, list[Sample]]:
        return {name: [Sample(9.0, cpu_ms[call])] * rounds for name, call in calls.items()}

    monkeypatch.setattr(host, "make", lambda name, given: name)
    monkeypatch.setattr(host, "samples", samples)
    monkeypatch.setattr(host, "without_kernels", nullcontext)
    rows = host.measure("forward", torch.float32, 2)
    assert [(row["contender"], row["ms_median"]) for row in rows] == [(host.OURS, 1), (host.REFERENCE, 2)]
    assert host.OURS.startswith("ours")


def test_rows_and_table(tmp_path: Path) -> None:
    printed = compiled("-m", "benchmarks.host", "--rounds", "2", "--out", str(tmp_path))
    rows = read_rows(tmp_path / "host-cpu.csv")
    assert [(row["dtype"], row["pass"]) for row in rows[::2]] == [
        (dtype, which) for dtype in ("bfloat16", "float32") for which in ("forward", "forward+backward")
    ]
    assert all(0 < float(row["ms_p20"]) <= float(row["ms_median"]) <= float(row["ms_p80"]) for row in rows)
    assert (tmp_path / "host-cpu.md").read_text() in printed
