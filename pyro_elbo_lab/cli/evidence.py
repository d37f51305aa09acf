"""The command `elbo-lab evidence`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pyro

from pyro_elbo_lab.cli import session
from pyro_elbo_lab.cli.model_file import InputError, ModelFile
from pyro_elbo_lab.cli.session import (
    blaming_fit,
    fitted,
    reference,
    save_figure,
    say,
    stem,
)
from pyro_elbo_lab.programs.state import seeded
from pyro_elbo_lab.trust.evidence.evidence import EvidenceBounds, evidence


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
