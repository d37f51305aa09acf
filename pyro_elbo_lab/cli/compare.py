"""The command `elbo-lab compare`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import xarray as xr

from pyro_elbo_lab.cli import session
from pyro_elbo_lab.cli.model_file import ModelFile, blaming
from pyro_elbo_lab.cli.session import approximate, say
from pyro_elbo_lab.cli.session import reference as reference_of
from pyro_elbo_lab.programs.state import seeded
from pyro_elbo_lab.report.write import check_destination, write_report
from pyro_elbo_lab.trust.comparison.compare import compare
from pyro_elbo_lab.trust.evidence.evidence import EvidenceBounds, evidence

_PRINTED = [
    "k_hat",
    "elbo",
    "elbo_se",
    "log_evidence",
    "max_abs_mean_error",
    "min_sd_ratio",
    "max_sd_ratio",
    "max_wasserstein",
]


def run(options: argparse.Namespace, command: str) -> None:
    """Fit, run NUTS, compare, print and write the report."""
    session.check_out(options.out, check_destination)
    file, combinations = session.combinations(options)
    session.check_reference(file)
    fits, approximations, parameters = {}, {}, {}
    for i, (name, (guide, objective)) in enumerate(combinations.items(), 1):
        say(f"fitting {name} ({i} of {len(combinations)})")
        with pyro.get_param_store().scope() as parameters[name]:
            done, tree = approximate(file, guide, objective, options)
        evaluations = done.num_steps * objective.num_particles
        tree.attrs |= {"seconds": done.seconds, "gradient_evaluations": evaluations}
        fits[name], approximations[name] = done, tree
    losses = {name: done.losses for name, done in fits.items()}
    reference = reference_of(file, options, parameters[next(iter(fits))])
    with blaming(file.path, "the comparison failed"):
        comparison = compare(approximations, reference, losses=losses)
    say("bounding the evidence")
    bounds = {
        name: _evidence(file, done.guide, parameters[name], reference, options)
        for name, done in fits.items()
    }
    print(comparison.summary[_PRINTED].to_string(float_format="%.2f", na_rep="-"), end="\n\n")
    for name, sentence in comparison.verdicts.items():
        print(f"{name}: {sentence}")
    for name, found in bounds.items():
        if found is not None:
            print(f"{name}: {found}")
    for note in comparison.notes:
        print(f"Note: {note}")
    info = {
        "model": file.path.stem,
        "command": command,
        "seed": options.seed,
        "training": f"{options.steps} steps of each fit",
        "draws": f"{options.num_samples} from each guide",
    }
    if file.learnt:
        info["parameters of the model"] = f"{', '.join(file.learnt)}: as the fit has learnt them"
    matplotlib.use("Agg")
    known = {name: found for name, found in bounds.items() if found is not None}

    def writing(folder: Path) -> Path:
        return write_report(comparison, folder, losses=losses, evidence=known, info=info)

    session.write("report", Path(options.out), writing)


def _evidence(
    file: ModelFile,
    guide: Callable[..., Any],
    parameters: Any,
    draws: xr.DataTree,
    options: argparse.Namespace,
) -> EvidenceBounds | None:
    """Bounds from a fitted guide with its own parameters; None where it has no density."""
    with pyro.get_param_store().scope(parameters), seeded(options.seed):
        try:
            return evidence(
                file.model,
                guide,
                *file.args,
                reference=draws,
                num_samples=options.num_samples,
                **file.kwargs,
            )
        except ValueError as error:
            say(f"no bounds of the evidence: {error}")
            return None
