"""What holds for every test and every doctest: a clean param store, fixed seeds, no windows."""

import os
import signal
from collections.abc import Iterator

os.environ.setdefault("MPLBACKEND", "Agg")  # before matplotlib is imported: never open a window
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for kernels of notebooks too, as tests share cores:
# two threads that wait for each other and for a busy neighbor are ten times slower than one

import matplotlib.pyplot as plt
import pyro
import pytest
import torch

signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore Ctrl-C
torch.set_num_threads(1)  # should torch have been imported before the line above


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Each test starts from the same seeds and defaults, and leaves none of its own behind."""
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    plt.close("all")  # or matplotlib warns of many open figures, in whichever test comes last
