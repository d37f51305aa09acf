"""The command ``elbo-lab``."""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from pyro_elbo_lab import _compare_command, _evidence_command, _sbc_command
from pyro_elbo_lab._command import say
from pyro_elbo_lab._model_file import InputError

_COMMANDS = [_compare_command, _evidence_command, _sbc_command]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``elbo-lab`` and return its exit code: 0, 2 for bad input, 130 when interrupted.

    >>> main(["compare", "no-such-file.py"])
    2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    try:
        with _one_core_left():
            options.run(options, shlex.join(["elbo-lab", *arguments]))
    except InputError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; no report was written")
        return 130
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
