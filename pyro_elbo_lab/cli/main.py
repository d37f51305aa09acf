"""The command `elbo-lab`."""

import shlex
import sys
from collections.abc import Sequence
from importlib import import_module

from pyro_elbo_lab.cli.options import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `elbo-lab` and return its exit code.

    It is 0; 2 for bad input, or results that cannot be written; 130 when interrupted by Ctrl-C and
    143 by SIGTERM.

    >>> main(["compare", "no-such-file.py"])
    2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    # From here on the libraries are loaded, which takes seconds.
    from pyro_elbo_lab.cli.model_file import InputError
    from pyro_elbo_lab.cli.process import Terminated, one_core_left, sigterm_interrupts
    from pyro_elbo_lab.cli.session import say

    command = import_module(f"pyro_elbo_lab.cli.{options.command}")
    try:
        with one_core_left(), sigterm_interrupts():
            command.run(options, shlex.join(["elbo-lab", *arguments]))
    except InputError as error:
        say(f"error: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt as error:
        say("interrupted; no report was written")
        return 143 if isinstance(error, Terminated) else 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
