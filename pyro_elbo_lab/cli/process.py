"""The process that a command runs in: its threads, and the signals that end it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def one_core_left() -> Iterator[None]:
    """Give torch one thread less than it would take, unless the user has said how many.

    With a thread on every core, any other busy process makes all of them wait at each small
    matrix product: measured on two cores, such fits took ten times as long.
    """
    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, which leaves no half-written files."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def interrupt(*_: Any) -> None:
        nonlocal came
        came = True
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:  # what comes out of a fit is another one
        if came:
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
