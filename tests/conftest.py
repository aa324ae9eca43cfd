"""One thread for the tests and the processes they start: their tensors are tiny, and on a busy machine OpenMP threads
that wait for each other turn seconds into minutes. And Triton's interpreter, which runs the kernels on a CPU. Both are
set before anything imports torch or Triton."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TRITON_INTERPRET", "1")  # 0: the kernels' tests on a GPU, see DEVICE in compare.py
