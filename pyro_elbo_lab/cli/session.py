"""What the commands of `elbo-lab` share: options, a fitted guide, a NUTS reference."""

import argparse
import hashlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import torch
import xarray as xr
from matplotlib.figure import Figure

from pyro_elbo_lab.cli import specs
from pyro_elbo_lab.cli.model_file import InputError, ModelFile, Program, blaming, load
from pyro_elbo_lab.inference.fitting.fit import Fit, fit
from pyro_elbo_lab.inference.nuts.nuts import nuts
from pyro_elbo_lab.inference.nuts.potential import isolated, prepare
from pyro_elbo_lab.inference.storage.files import remove
from pyro_elbo_lab.inference.storage.folders import check_folder, filling, slug
from pyro_elbo_lab.inference.trees.convert import from_guide
from pyro_elbo_lab.objectives.particles.probe import is_vectorizable
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.state import seeded
from pyro_elbo_lab.programs.structure.analysis import analyze
from pyro_elbo_lab.trust.comparison.sources import as_tree

Combinations = dict[str, tuple[str, specs.ObjectiveSpec]]


def _unique(options: argparse.Namespace, name: str, default: str) -> list[str]:
    """The values of an option that may be repeated, each once."""
    return list(dict.fromkeys(getattr(options, name, [default])))


def say(text: str) -> None:
    """Tell the user, beside what is printed as a result."""
    print(f"elbo-lab: {text}", file=sys.stderr, flush=True)


def combinations(options: argparse.Namespace) -> tuple[ModelFile, Combinations]:
    """The model file, and every guide with every objective by title; all checked before anything
    takes time."""
    objectives = [specs.objective(spec) for spec in _unique(options, "objective", "standard")]
    guides = _unique(options, "guide", "normal")
    file = load(options.file)
    for guide in guides:
        check_guide(file, guide)
        for objective in objectives:
            _check_objective(file, guide, objective)
    found = {f"{g}, {o.spec}": (g, o) for g in guides for o in objectives}
    if file.learnt and len(found) > 1:
        raise InputError(
            f"{file.path}: the model learns parameters ({', '.join(file.learnt)}), and each of "
            f"{'; '.join(found)} would learn others and have a posterior of its own. Choose one "
            "guide and one objective"
        )
    return file, found


def check_guide(file: ModelFile, name: str) -> tuple[str, ...]:
    """Build the guide and run it with the model once; returns the latents that it sets to single
    values."""
    with blaming(file.path, f"guide {name!r} failed"), pyro.get_param_store().scope(), seeded(0):
        guide = specs.guide(name, file)
        found, *_ = analyze(Pair(file.model, guide, file.args, file.kwargs))
    return tuple(found.points)


def _check_objective(file: ModelFile, guide_name: str, objective: specs.ObjectiveSpec) -> None:
    """Compute the loss of a new guide once."""
    with blaming_fit(file, guide_name, objective), pyro.get_param_store().scope(), seeded(0):
        guide = specs.guide(guide_name, file)
        with torch.no_grad():
            _loss(file, guide, objective).loss(file.model, guide, *file.args, **file.kwargs)


def check_reference(file: ModelFile) -> None:
    """Refuse a model that NUTS cannot sample."""
    if file.exact_draws is None:
        with blaming(file.path, "NUTS failed"), seeded(0), isolated():
            prepare(file.model, file.args, file.kwargs)


def check_out(path: str, check: Callable[[str], None] = check_folder) -> None:
    """Refuse an `--out` that cannot be written."""
    if not path:
        raise InputError("--out is empty; name a folder")
    try:
        check(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--out: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What an error says, without its number."""
    return getattr(error, "strerror", None) or str(error)


def blaming_fit(
    file: ModelFile, guide_name: str, objective: specs.ObjectiveSpec
) -> AbstractContextManager[None]:
    """Errors within name the guide and the objective."""
    return blaming(file.path, f"guide {guide_name!r} with objective {objective.spec!r} failed")


def approximate(
    file: ModelFile, guide_name: str, objective: specs.ObjectiveSpec, options: argparse.Namespace
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
    objective: specs.ObjectiveSpec,
    options: argparse.Namespace,
    progress: bool = True,
) -> tuple[Any, Fit]:
    """A new guide, fitted."""
    guide = specs.guide(guide_name, file)
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
    """The beginning of the paths of files about a fit, which move to the folder at the end.

    Other titles have other beginnings. Names as they usually are stay as they are; of others a
    part may be lost, and a number tells them apart.
    """
    name = slug(title)
    if not _USUAL.fullmatch(title):
        name += f"-{hashlib.sha256(title.encode(errors='replace')).hexdigest()[:6]}"
    with filling(folder) as fresh:
        yield fresh / name


_USUAL = re.compile(r"[a-z0-9_]{1,30}, [a-z]+(-[a-z]+)*(:[0-9]{1,9})?")
"""Titles whose slugs differ: the guide ends at the first hyphen, and digits at the end are K."""


def write(what: str, folder: Path, writing: Callable[[Path], Path]) -> None:
    """Call `writing` with the folder, or with another if that one cannot be written.

    Args:
        what: is written.
        writing: returns the path of what it has written.

    Raises:
        InputError: the folder cannot be written; the message says where the results are instead.
    """
    try:
        say(f"wrote {writing(folder)}")
    except OSError as error:
        elsewhere = _elsewhere(folder.resolve().name, writing)
        raise InputError(f"the {what} cannot be written: {_reason(error)}. {elsewhere}") from error


def _elsewhere(name: str, writing: Callable[[Path], Path]) -> str:
    """Write into the folder of temporary files, and say where, or why not."""
    place = ""
    try:
        place = tempfile.mkdtemp(prefix="elbo-lab-")
        return f"Instead, {writing(Path(place, name[:40]))} was written: move it where it belongs"
    except OSError as error:
        if place:
            remove(Path(place))
        return f"Nor can a folder of temporary files: {_reason(error)}; what is printed is all"


def save_figure(figure: Figure, stem: Path) -> None:
    """As PNG and SVG."""
    for suffix in ("png", "svg"):
        figure.savefig(f"{stem}.{suffix}", dpi=200)
    plt.close(figure)


def _loss(file: ModelFile, guide: Any, objective: specs.ObjectiveSpec) -> pyro.infer.ELBO:
    several = objective.num_particles > 1
    vectorize = several and is_vectorizable(Pair(file.model, guide, file.args, file.kwargs))
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
