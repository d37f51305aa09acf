"""What the commands of ``elbo-lab`` share: options, a fitted guide, a NUTS reference."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
import xarray as xr
from matplotlib.figure import Figure

from pyro_elbo_lab import _specs, structure
from pyro_elbo_lab._model_file import InputError, ModelFile, Program, blaming, load
from pyro_elbo_lab._sources import as_tree
from pyro_elbo_lab.convert import from_guide
from pyro_elbo_lab.fit import Fit, fit
from pyro_elbo_lab.reference import nuts
from pyro_elbo_lab.sampling import is_vectorizable
from pyro_elbo_lab.state import seeded

Combinations = dict[str, tuple[str, _specs.ObjectiveSpec]]


def add_options(command: argparse.ArgumentParser) -> None:
    """A model file, guides, objectives, and the sizes of fits and of NUTS."""
    add_fit_options(command)
    add = command.add_argument
    add("--num-samples", type=positive, default=10_000, metavar="N", help="draws from each guide")
    add("--chains", type=positive, default=4, metavar="N", help="chains of NUTS")
    add("--warmup", type=positive, default=500, metavar="N", help="warm-up draws of each chain")
    add("--draws", type=positive, default=1000, metavar="N", help="draws kept of each chain")


def add_fit_options(command: argparse.ArgumentParser) -> None:
    """A model file, guides, objectives, the length of a fit and the seed."""
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
    add("--seed", type=int, default=0, metavar="N", help="seed of everything random")


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _unique(options: argparse.Namespace, name: str, default: str) -> list[str]:
    """The values of an option that may be repeated, each once."""
    return list(dict.fromkeys(getattr(options, name, [default])))


def say(text: str) -> None:
    """Tell the user, beside what is printed as a result."""
    print(f"elbo-lab: {text}", file=sys.stderr, flush=True)


def combinations(options: argparse.Namespace) -> tuple[ModelFile, Combinations]:
    """The model file, and every guide with every objective by title; all checked before anything
    takes time."""
    objectives = [_specs.objective(spec) for spec in _unique(options, "objective", "standard")]
    guides = _unique(options, "guide", "normal")
    file = load(options.file)
    for guide in guides:
        check_guide(file, guide)
    found = {f"{g}, {o.spec}": (g, o) for g in guides for o in objectives}
    if file.learnt and len(found) > 1:
        raise InputError(
            f"{file.path}: the model learns parameters ({', '.join(file.learnt)}), and each of "
            f"{'; '.join(found)} would learn others and have a posterior of its own. Choose one "
            "guide and one objective"
        )
    return file, found


def check_guide(file: ModelFile, name: str) -> None:
    """Build the guide and run it with the model once."""
    with blaming(file.path, f"guide {name!r} failed"), pyro.get_param_store().scope(), seeded(0):
        structure.analyse(file.model, _specs.guide(name, file), file.args, file.kwargs)


def blaming_fit(
    file: ModelFile, guide_name: str, objective: _specs.ObjectiveSpec
) -> AbstractContextManager[None]:
    """Errors within name the guide and the objective."""
    return blaming(file.path, f"guide {guide_name!r} with objective {objective.spec!r} failed")


def approximate(
    file: ModelFile, guide_name: str, objective: _specs.ObjectiveSpec, options: argparse.Namespace
) -> tuple[Fit, xr.DataTree]:
    """Fit a new guide from a clean param store, and draw from it."""
    pyro.clear_param_store()
    with blaming_fit(file, guide_name, objective), seeded(options.seed):
        guide, done = fitted(file, guide_name, objective, options)
        tree = from_guide(
            guide, file.model, *file.args, num_samples=options.num_samples, **file.kwargs
        )
    return done, tree


def fitted(
    file: ModelFile,
    guide_name: str,
    objective: _specs.ObjectiveSpec,
    options: argparse.Namespace,
    progress: bool = True,
) -> tuple[Any, Fit]:
    """A new guide, fitted."""
    guide = _specs.guide(guide_name, file)
    done = fit(
        file.model,
        guide,
        *file.args,
        objective=_loss(file, guide, objective),
        num_steps=options.steps,
        seed=options.seed,
        progress=progress,
        **file.kwargs,
    )
    if done.num_steps < options.steps:  # fit returns what it has when interrupted
        raise KeyboardInterrupt
    return guide, done


@contextmanager
def stem(folder: Path, title: str) -> Iterator[Path]:
    """The beginning of the names of files about a fit, in a folder that the block can write to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder / "".join(c if c.isalnum() else "-" for c in title).replace("--", "-")
    except OSError as error:
        raise InputError(f"the results cannot be written to {folder}: {error}") from error


def save_figure(figure: Figure, stem: Path) -> None:
    """As PNG and SVG."""
    for suffix in ("png", "svg"):
        figure.savefig(f"{stem}.{suffix}", dpi=200)
    plt.close(figure)


def _loss(file: ModelFile, guide: Any, objective: _specs.ObjectiveSpec) -> pyro.infer.ELBO:
    several = objective.num_particles > 1
    vectorize = several and is_vectorizable(file.model, guide, file.args, file.kwargs)
    return objective.build(objective.num_particles, vectorize_particles=vectorize)


def reference(file: ModelFile, options: argparse.Namespace, learnt: Any) -> xr.DataTree:
    """The file's exact draws, or else NUTS, as many as the options say.

    Args:
        learnt: a fit's state of the param store; what the model learns has these values.
    """
    with pyro.get_param_store().scope(learnt if file.learnt else None):
        if file.learnt:
            say(f"the reference has the parameters just learnt: {', '.join(file.learnt)}")
        if file.exact_draws is not None:
            return _exact(file, file.exact_draws, options)
        return _nuts(file, options)


def _exact(file: ModelFile, draw: Program, options: argparse.Namespace) -> xr.DataTree:
    num_draws = options.chains * options.draws
    say(f"drawing {num_draws} times from the exact posterior")
    with blaming(file.path, "exact_draws failed"), seeded(options.seed), torch.no_grad():
        draws = draw(num_draws, *file.args, **file.kwargs)
        return as_tree({name: x.cpu().numpy()[None] for name, x in draws.items()}, "exact_draws")


def _nuts(file: ModelFile, options: argparse.Namespace) -> xr.DataTree:
    say(f"running NUTS: {options.chains} chains of {options.warmup} + {options.draws} draws")
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
