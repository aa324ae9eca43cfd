"""One thread for the tests and the processes they start: their tensors are tiny, and on a busy machine OpenMP threads
that wait for each other turn seconds into minutes. And Triton's interpreter, which runs the kernels on a CPU, by NumPy:
with the same kind of products on every x86 machine, so that what is compared to rounding does not depend on it. All are
set before anything imports NumPy, torch or Triton."""

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TRITON_INTERPRET", "1")  # 0: the kernels' tests on a GPU, see DEVICE in compare.py
cpu = Path("/proc/cpuinfo")
if cpu.exists() and " avx2 " in cpu.read_text():
    os.environ["OPENBLAS_CORETYPE"] = "Haswell"
