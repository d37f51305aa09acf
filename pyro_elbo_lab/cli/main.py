"""The command ``elbo-lab``."""

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pyro_elbo_lab.cli import compare, evidence, sbc
from pyro_elbo_lab.cli.model_file import InputError
from pyro_elbo_lab.cli.session import say

_COMMANDS = [compare, evidence, sbc]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``elbo-lab`` and return its exit code.

    It is 0; 2 for bad input, or results that cannot be written; 130 when interrupted by Ctrl-C and
    143 by SIGTERM.

    >>> main(["compare", "no-such-file.py"])
    2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    try:
        with _one_core_left(), _sigterm_interrupts():
            options.run(options, shlex.join(["elbo-lab", *arguments]))
    except InputError as error:
        say(f"error: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt as error:
        say("interrupted; no report was written")
        return 143 if isinstance(error, _Terminated) else 130
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elbo-lab", description="Variational inference with Pyro, compared with NUTS."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in _COMMANDS:
        command.add_to(commands)
    return parser


@contextmanager
def _one_core_left() -> Iterator[None]:
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
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, which leaves no half-written files."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def interrupt(*_: Any) -> None:
        nonlocal came
        came = True
        raise _Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:  # what comes out of a fit is another one
        if came:
            raise _Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
