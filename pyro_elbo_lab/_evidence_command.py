"""The command ``elbo-lab evidence``."""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import pyro

from pyro_elbo_lab import _specs
from pyro_elbo_lab._command import add_options, check_guide, fitted, reference, say, unique
from pyro_elbo_lab._model_file import InputError, ModelFile, blaming, load
from pyro_elbo_lab.evidence import EvidenceBounds, evidence
from pyro_elbo_lab.state import seeded


def add_to(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    command = commands.add_parser(
        "evidence",
        help="bound log p(x) from below by guides and from above by draws of NUTS",
        description="Fit every guide with every objective, run NUTS, and bound the evidence.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(command)
    command.add_argument(
        "--out", default="evidence", metavar="FOLDER", help="where to write tables and figures"
    )
    command.set_defaults(run=run, num_samples=100_000)


def run(options: argparse.Namespace, command: str) -> None:
    """Fit, run NUTS, bound, print and write."""
    objectives = [_specs.objective(spec) for spec in unique(options, "objective", "standard")]
    file = load(options.file)
    guides = unique(options, "guide", "normal")
    for guide in guides:
        check_guide(file, guide)
    say(f"running NUTS: {options.chains} chains of {options.warmup} + {options.draws} draws")
    draws = reference(file, options)
    for name in guides:
        for objective in objectives:
            title = f"{name}, {objective.spec}"
            say(f"fitting {title}")
            pyro.clear_param_store()
            bounds = _bounds(file, name, objective, draws, options)
            print(f"{title}: {bounds}\n\n{_printed(bounds)}\n")
            _write(bounds, Path(options.out), title)


def _bounds(
    file: ModelFile,
    name: str,
    objective: _specs.ObjectiveSpec,
    draws: Any,
    options: argparse.Namespace,
) -> EvidenceBounds:
    what = f"guide {name!r} with objective {objective.spec!r} failed"
    with blaming(file.path, what), seeded(options.seed):
        guide, _ = fitted(file, name, objective, options)
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


def _write(bounds: EvidenceBounds, folder: Path, title: str) -> None:
    matplotlib.use("Agg")
    stem = "".join(c if c.isalnum() else "-" for c in title).replace("--", "-")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        bounds.table.to_csv(folder / f"{stem}.csv", index=False)
        for suffix in ("png", "svg"):
            bounds.plot().savefig(folder / f"{stem}.{suffix}", dpi=200)
    except OSError as error:
        raise InputError(f"the evidence cannot be written to {folder}: {error}") from error
    say(f"wrote {folder / stem}.csv, .png and .svg")
