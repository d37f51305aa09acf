"""What the commands of ``elbo-lab`` share: options, a fitted guide, a NUTS reference."""

import argparse
import sys
from typing import Any

import pyro
import xarray as xr

from pyro_elbo_lab import _specs, structure
from pyro_elbo_lab._model_file import ModelFile, blaming
from pyro_elbo_lab.convert import from_guide
from pyro_elbo_lab.fit import Fit, fit
from pyro_elbo_lab.reference import nuts
from pyro_elbo_lab.sampling import is_vectorizable
from pyro_elbo_lab.state import seeded


def add_options(command: argparse.ArgumentParser) -> None:
    """A model file, guides, objectives, and the sizes of fits and of NUTS."""
    add = command.add_argument
    add("file", help="Python file that defines `model` and `data()`, and maybe `guides`")
    add(
        "--guide",
        action="append",
        metavar="NAME",
        help=f"{', '.join(_specs.GUIDES)}, or a name in the file's `guides`; may be repeated "
        "(default: normal)",
        default=argparse.SUPPRESS,
    )
    add(
        "--objective",
        action="append",
        metavar="NAME[:K]",
        help=f"{', '.join(_specs.OBJECTIVES)}, with K particles (10 unless said); may be repeated "
        "(default: standard)",
        default=argparse.SUPPRESS,
    )
    add("--steps", type=positive, default=2500, metavar="N", help="training steps of each fit")
    add("--num-samples", type=positive, default=10_000, metavar="N", help="draws from each guide")
    add("--chains", type=positive, default=4, metavar="N", help="chains of NUTS")
    add("--warmup", type=positive, default=500, metavar="N", help="warm-up draws of each chain")
    add("--draws", type=positive, default=1000, metavar="N", help="draws kept of each chain")
    add("--seed", type=int, default=0, metavar="N", help="seed of everything random")


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def unique(options: argparse.Namespace, name: str, default: str) -> list[str]:
    """The values of an option that may be repeated, each once."""
    return list(dict.fromkeys(getattr(options, name, [default])))


def say(text: str) -> None:
    """Tell the user, beside what is printed as a result."""
    print(f"elbo-lab: {text}", file=sys.stderr, flush=True)


def check_guide(file: ModelFile, name: str) -> None:
    """Build the guide and run it with the model once, before anything takes time."""
    with blaming(file.path, f"guide {name!r} failed"), pyro.get_param_store().scope(), seeded(0):
        structure.analyse(file.model, _specs.guide(name, file), file.args, file.kwargs)


def approximate(
    file: ModelFile, guide_name: str, objective: _specs.ObjectiveSpec, options: argparse.Namespace
) -> tuple[Fit, xr.DataTree]:
    """Fit a new guide from a clean param store, and draw from it."""
    pyro.clear_param_store()
    what = f"guide {guide_name!r} with objective {objective.spec!r} failed"
    with blaming(file.path, what), seeded(options.seed):
        guide, done = fitted(file, guide_name, objective, options)
        tree = from_guide(
            guide, file.model, *file.args, num_samples=options.num_samples, **file.kwargs
        )
    return done, tree


def fitted(
    file: ModelFile, guide_name: str, objective: _specs.ObjectiveSpec, options: argparse.Namespace
) -> tuple[Any, Fit]:
    """A new guide, fitted."""
    guide = _specs.guide(guide_name, file)
    loss = _loss(file, guide, objective)
    done = fit(
        file.model,
        guide,
        *file.args,
        objective=loss,
        num_steps=options.steps,
        seed=options.seed,
        **file.kwargs,
    )
    if done.num_steps < options.steps:  # fit returns what it has when interrupted
        raise KeyboardInterrupt
    return guide, done


def _loss(file: ModelFile, guide: Any, objective: _specs.ObjectiveSpec) -> pyro.infer.ELBO:
    several = objective.num_particles > 1
    vectorize = several and is_vectorizable(file.model, guide, file.args, file.kwargs)
    return objective.build(objective.num_particles, vectorize_particles=vectorize)


def reference(file: ModelFile, options: argparse.Namespace) -> xr.DataTree:
    """NUTS on the model, with the options' chains and draws."""
    pyro.clear_param_store()
    with blaming(file.path, "NUTS failed"):
        return nuts(
            file.model,
            *file.args,
            num_chains=options.chains,
            num_warmup=options.warmup,
            num_samples=options.draws,
            seed=options.seed,
            **file.kwargs,
        )
