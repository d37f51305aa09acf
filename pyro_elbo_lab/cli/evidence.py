"""The command ``elbo-lab evidence``."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pyro

from pyro_elbo_lab.cli import session
from pyro_elbo_lab.cli.model_file import InputError, ModelFile
from pyro_elbo_lab.cli.session import (
    add_options,
    blaming_fit,
    fitted,
    reference,
    save_figure,
    say,
    stem,
)
from pyro_elbo_lab.programs.state import seeded
from pyro_elbo_lab.trust.evidence.evidence import EvidenceBounds, evidence

LEAST_DRAWS = 100  # as `evidence` asks


def add_to(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    command = commands.add_parser(
        "evidence",
        help="bound log p(x) from below by guides and from above by draws of NUTS",
        description="Fit every guide with every objective, run NUTS, and bound the evidence.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(command, LEAST_DRAWS, 1)
    command.add_argument(
        "--out", default="evidence", metavar="FOLDER", help="where to write tables and figures"
    )
    command.set_defaults(run=run, num_samples=100_000)


def run(options: argparse.Namespace, command: str) -> None:
    """Fit, run NUTS, bound, print and write."""
    session.check_out(options.out)
    file, combinations = session.combinations(options)
    _check_densities(file, combinations)
    session.check_reference(file)
    draws: Any = None
    for title, (name, objective) in combinations.items():
        say(f"fitting {title}")
        with blaming_fit(file, name, objective):
            with pyro.get_param_store().scope() as learnt, seeded(options.seed):
                guide, _ = fitted(file, name, objective, options)
            draws = reference(file, options, learnt) if draws is None else draws
            with pyro.get_param_store().scope(learnt):
                bounds = _bounds(file, guide, draws, options)
        print(f"{title}: {bounds}\n\n{_printed(bounds)}\n")
        _write(bounds, Path(options.out), title)


def _bounds(
    file: ModelFile, guide: Callable[..., Any], draws: Any, options: argparse.Namespace
) -> EvidenceBounds:
    with seeded(options.seed):
        return evidence(
            file.model,
            guide,
            *file.args,
            reference=draws,
            num_samples=options.num_samples,
            **file.kwargs,
        )


def _printed(bounds: EvidenceBounds) -> str:
    table = bounds.table.rename(columns={"num_draws": "K"})
    return table.to_string(index=False, float_format="%.3f", na_rep="-")


def _check_densities(file: ModelFile, combinations: session.Combinations) -> None:
    """Refuse a guide that is a point, which bounds nothing."""
    for name, _ in combinations.values():
        if points := session.check_guide(file, name):
            raise InputError(
                f"guide {name!r} sets {', '.join(points)} to single values, which have no density: "
                "no bound of log p(x) follows; choose a guide that draws at random"
            )


def _write(bounds: EvidenceBounds, folder: Path, title: str) -> None:
    matplotlib.use("Agg")

    def writing(folder: Path) -> Path:
        with stem(folder, title) as name:
            bounds.table.to_csv(f"{name}.csv", index=False)
            save_figure(bounds.plot(), name)
        return folder / f"{name.name}.csv, .png and .svg"

    session.write("results", folder, writing)
