"""Kernels compiled ahead: on several threads, launched by none, and what fails is left to its launch."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import threading
import time
from unittest.mock import patch

import torch
from slotattn_fast.kernels import ops
from slotattn_fast.kernels.launch import attend_config
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime import driver

from benchmarks import compile_ahead, gpu_tune, host

make_ir, threads, pause = ASTSource.make_ir, [], 0.0


def noted(self, *arguments):
    threads.append(threading.get_ident())
    time.sleep(pause)
    return make_ir(self, *arguments)


def found(seconds, *changes):
    ops.attend_bwd_kernel.device_caches.clear()
    threads.clear()
    calls = [gpu_tune.configured(call, table._replace(**change)) for change in changes]
    compile_ahead._compile(calls, seconds, 2)
    kernels = ops.attend_bwd_kernel.device_caches[0][0].values()
    assert all(isinstance(kernel, CompiledKernel) for kernel in kernels)
    print(len(kernels), len(set(threads)), len(threads))


table = attend_config(2, 64, 64, 3, 1, 2, 132, "query", True)
call = gpu_tune.problem((2, 64, 3), "query", torch.device("cpu"))
with (
    patch.object(driver, "_active", host._Driver()),
    patch.object(ASTSource, "make_ir", noted),
    patch.object(CompiledKernel, "_init_handles", lambda self: print("launched")),
):
    found(60, {}, {"num_stages": 1}, {"block_n": 24})
    pause = 1.5
    found(1, *({"num_stages": stages, "num_warps": 8} for stages in range(1, 6)))
"""


def test_compiled_by_threads_and_not_launched(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, cut = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert whole == (2, 2, 3)  # of which one failed
    assert cut[2] <= 2
