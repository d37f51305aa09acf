"""What the command line can say, without what it takes to do it: `--help` answers at once."""

import argparse
from collections.abc import Callable
from typing import Any

from pyro_elbo_lab import __version__
from pyro_elbo_lab.statistics.tolerances import MIN_DRAWS_PER_CHAIN

GUIDES = ("normal", "diagonal", "mvn", "lowrank", "iaf", "delta")
"""Names of guides that Pyro derives from the model."""

OBJECTIVES = (
    "standard",
    "importance-weighted",
    "analytic-kl",
    "renyi",
    "thermodynamic",
    "jackknife",
    "chi",
    "forward-kl",
    "tail-adaptive",
)

LEAST_FOR_EVIDENCE = 100  # as `evidence` asks


def parser() -> argparse.ArgumentParser:
    """The parser of `elbo-lab`: `command` is the name of the module that runs what is asked."""
    whole = argparse.ArgumentParser(
        prog="elbo-lab", description="Variational inference with Pyro, compared with NUTS."
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = whole.add_subparsers(required=True, metavar="command")
    for add in (_compare, _evidence, _sbc):
        add(commands)
    return whole


def _compare(commands: Any) -> None:
    command = commands.add_parser(
        "compare",
        help="fit guides to a model, run NUTS on it, and report how they differ",
        description="Fit every guide with every objective, run NUTS, compare, and write a report.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_options(command, MIN_DRAWS_PER_CHAIN, MIN_DRAWS_PER_CHAIN)
    command.add_argument(
        "--out", default="report", metavar="FOLDER", help="where to write the report"
    )
    command.set_defaults(command="compare")


def _evidence(commands: Any) -> None:
    command = commands.add_parser(
        "evidence",
        help="bound log p(x) from below by guides and from above by draws of NUTS",
        description="Fit every guide with every objective, run NUTS, and bound the evidence.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_options(command, LEAST_FOR_EVIDENCE, 1)
    command.add_argument(
        "--out", default="evidence", metavar="FOLDER", help="where to write tables and figures"
    )
    command.set_defaults(command="evidence", num_samples=100_000)


def _sbc(commands: Any) -> None:
    command = commands.add_parser(
        "sbc",
        help="find by simulation whether fits are too narrow, too wide or shifted",
        description="Draw parameters and data from the model, fit the data with every guide and "
        "objective, and rank the parameters among draws of the fits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_fit_options(command)
    add = command.add_argument
    add("--simulations", type=_at_least(10), default=200, metavar="N", help="simulated data sets")
    add("--draws", type=_positive, default=100, metavar="N", help="draws of each fit to rank among")
    add("--jobs", type=_jobs, default=1, metavar="N", help="processes; -1 for one a core")
    add("--out", default="calibration", metavar="FOLDER", help="where to write tables and figures")
    command.set_defaults(command="sbc")


def _add_options(command: argparse.ArgumentParser, fewest_draws: int, fewest_kept: int) -> None:
    """A model file, guides, objectives, and the sizes of fits and of NUTS.

    Args:
        fewest_draws: of each guide.
        fewest_kept: draws kept of each chain.
    """
    _add_fit_options(command)
    add, many, kept = command.add_argument, _at_least(fewest_draws), _at_least(fewest_kept)
    add("--num-samples", type=many, default=10_000, metavar="N", help="draws from each guide")
    add("--chains", type=_positive, default=4, metavar="N", help="chains of NUTS")
    add("--warmup", type=_positive, default=500, metavar="N", help="warm-up draws of each chain")
    add("--draws", type=kept, default=1000, metavar="N", help="draws kept of each chain")


def _add_fit_options(command: argparse.ArgumentParser) -> None:
    """A model file, guides, objectives, the length of a fit and the seed."""
    add = command.add_argument
    add("file", help="Python file that defines `model` and `data()`, and maybe `guides`")
    add(
        "--guide",
        action="append",
        metavar="NAME",
        help=f"{', '.join(GUIDES)}, or a name in the file's `guides`; may be repeated "
        "(default: normal)",
        default=argparse.SUPPRESS,
    )
    add(
        "--objective",
        action="append",
        metavar="NAME[:K]",
        help=f"{', '.join(OBJECTIVES)}, with K particles (10 unless said); may be repeated "
        "(default: standard)",
        default=argparse.SUPPRESS,
    )
    add("--steps", type=_positive, default=2500, metavar="N", help="training steps of each fit")
    add("--seed", type=_seed, default=0, metavar="N", help="seed of everything random")


def _at_least(least: int) -> Callable[[str], int]:
    """What reads an integer of at least so much, for argparse."""

    def read(text: str) -> int:
        number = _integer(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return number

    return read


def _integer(text: str) -> int:
    """An integer, for argparse."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from error


_positive = _at_least(1)


def _seed(text: str) -> int:
    number = _integer(text)
    if not 0 <= number < 2**32:  # what numpy takes
        raise argparse.ArgumentTypeError(f"must be from 0 to 2**32 - 1, got {text}")
    return number


def _jobs(text: str) -> int:
    number = _integer(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be at least 1, or -1 for one a core, got 0")
    return number
