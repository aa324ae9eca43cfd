"""One thread for the tests and the processes they start: their tensors are tiny, and on a busy machine OpenMP threads
that wait for each other turn seconds into minutes. Set before anything imports torch."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
