"""The command ``elbo-lab``."""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import pyro
import torch
import xarray as xr

from pyro_elbo_lab import _specs, structure
from pyro_elbo_lab._model_file import InputError, ModelFile, blaming, load
from pyro_elbo_lab.comparison import compare
from pyro_elbo_lab.convert import from_guide
from pyro_elbo_lab.fit import Fit, fit
from pyro_elbo_lab.reference import nuts
from pyro_elbo_lab.report import check_destination, write_report
from pyro_elbo_lab.sampling import is_vectorizable
from pyro_elbo_lab.state import seeded

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``elbo-lab`` and return its exit code: 0, 2 for bad input, 130 when interrupted.

    >>> main(["compare", "no-such-file.py"])
    2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    try:
        with _one_core_left():
            _compare(options, shlex.join(["elbo-lab", *arguments]))
    except InputError as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _say("interrupted; no report was written")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elbo-lab", description="Variational inference with Pyro, compared with NUTS."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "compare",
        help="fit guides to a model, run NUTS on it, and report how they differ",
        description="Fit every guide with every objective, run NUTS, compare, and write a report.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
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
    add("--out", default="report", metavar="FOLDER", help="where to write the report")
    add("--steps", type=_positive, default=2500, metavar="N", help="training steps of each fit")
    add("--num-samples", type=_positive, default=10_000, metavar="N", help="draws from each guide")
    add("--chains", type=_positive, default=4, metavar="N", help="chains of NUTS")
    add("--warmup", type=_positive, default=500, metavar="N", help="warm-up draws of each chain")
    add("--draws", type=_positive, default=1000, metavar="N", help="draws kept of each chain")
    add("--seed", type=int, default=0, metavar="N", help="seed of everything random")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _compare(options: argparse.Namespace, command: str) -> None:
    objectives = [_specs.objective(spec) for spec in _unique(options, "objective", "standard")]
    guides = _unique(options, "guide", "normal")
    _check_destination(options.out)
    file = load(options.file)
    for guide in guides:
        _check_guide(file, guide)
    combinations = {f"{g}, {o.spec}": (g, o) for g in guides for o in objectives}
    fits, approximations = {}, {}
    for i, (name, (guide, objective)) in enumerate(combinations.items(), 1):
        _say(f"fitting {name} ({i} of {len(combinations)})")
        fits[name], approximations[name] = _approximate(file, guide, objective, options)
    _say(f"running NUTS: {options.chains} chains of {options.warmup} + {options.draws} draws")
    reference = _reference(file, options)
    with blaming(file.path, "the comparison failed"):
        comparison = compare(approximations, reference)
    print(comparison.summary[_PRINTED].to_string(float_format="%.2f", na_rep="-"), end="\n\n")
    for name, sentence in comparison.verdicts.items():
        print(f"{name}: {sentence}")
    for note in comparison.notes:
        print(f"Note: {note}")
    info = {
        "model": file.path.stem,
        "command": command,
        "seed": options.seed,
        "training": f"{options.steps} steps; "
        + ", ".join(f"{name}: {done.seconds:.1f} s" for name, done in fits.items()),
        "draws": f"{options.num_samples} from each guide",
    }
    matplotlib.use("Agg")
    losses = {name: done.losses for name, done in fits.items()}
    try:
        page = write_report(comparison, options.out, losses=losses, info=info)
    except OSError as error:
        raise InputError(f"the report cannot be written: {error}") from error
    _say(f"wrote {page}")


def _unique(options: argparse.Namespace, name: str, default: str) -> list[str]:
    return list(dict.fromkeys(getattr(options, name, [default])))


def _check_destination(path: str) -> None:
    try:
        check_destination(path)
    except FileExistsError as error:
        raise InputError(f"--out: {error}") from error


def _check_guide(file: ModelFile, name: str) -> None:
    """Build the guide and run it with the model once, before anything takes time."""
    with blaming(file.path, f"guide {name!r} failed"), pyro.get_param_store().scope(), seeded(0):
        structure.analyse(file.model, _specs.guide(name, file), file.args, file.kwargs)


def _approximate(
    file: ModelFile, guide_name: str, objective: _specs.ObjectiveSpec, options: argparse.Namespace
) -> tuple[Fit, xr.DataTree]:
    """Fit a new guide from a clean param store, and draw from it."""
    pyro.clear_param_store()
    what = f"guide {guide_name!r} with objective {objective.spec!r} failed"
    with blaming(file.path, what), seeded(options.seed):
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
        tree = from_guide(
            guide, file.model, *file.args, num_samples=options.num_samples, **file.kwargs
        )
    return done, tree


def _loss(file: ModelFile, guide: Any, objective: _specs.ObjectiveSpec) -> pyro.infer.ELBO:
    several = objective.num_particles > 1
    vectorize = several and is_vectorizable(file.model, guide, file.args, file.kwargs)
    return objective.build(objective.num_particles, vectorize_particles=vectorize)


def _reference(file: ModelFile, options: argparse.Namespace) -> xr.DataTree:
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


def _say(text: str) -> None:
    print(f"elbo-lab: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
