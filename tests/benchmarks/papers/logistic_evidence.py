"""Evidences of three Bayesian logistic regressions, between lower and upper bounds.

Run from the project's root: python -m tests.benchmarks.papers.logistic_evidence --data FOLDER

    w ~ Normal(0, s^2 I),  y_i ~ Bernoulli(sigmoid(x_i . w)),

covariates standardized (mean 0, sd 1 over the data) after a column of ones, labels 1 for the second
class. The folder has UCI's `ionosphere.npz` and `sonar.npz` (arrays `X`, `y`) and
`german.data-numeric`. The tasks are those on which samplers are compared by their ELBO, as by
D. Blessing et al. (2024), Beyond ELBOs: a large-scale evaluation of variational methods for
sampling, ICML. A published evidence is therefore taken for a lower bound, and compared as one.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous, AutoDiagonalNormal, AutoMultivariateNormal
from torch import Tensor

from pyro_elbo_lab import EvidenceBounds, StandardELBO, evidence, fit, nuts
from tests.benchmarks.papers.published import Result, Setting, arguments, report


class Task(NamedTuple):
    """A data set, the sd of the prior, and what was published, in nats, with remarks."""

    file: str
    prior_sd: float
    evidence: float
    mean_field: float
    remark: str = ""


TASKS = {
    "ionosphere": Task("ionosphere.npz", 1.0, -111.609, -123.581),
    "sonar": Task("sonar.npz", 1.0, -108.393, -137.906),
    "german credit": Task(
        "german.data-numeric",
        10.0,
        -585.101,
        -605.666,
        "published is no optimum: this ELBO is concave and has one maximum",
    ),
}


class Run(NamedTuple):
    """How much of everything."""

    num_steps: int
    num_samples: int
    num_draws: int


FULL = Run(num_steps=30_000, num_samples=400_000, num_draws=10_000)
QUICK = Run(num_steps=2_000, num_samples=20_000, num_draws=500)

SETTINGS = [
    Setting("prior sd of weights", "1, 1, 10 (ionosphere, sonar, german credit)", "the same"),
    Setting("intercept", "a column of ones, same prior", "the same"),
    Setting("lower bound", "presumably the ELBO of a sampler", "IW, full-rank Gaussian"),
    Setting(
        "training",
        "-",
        f"compiled `fit`, ELBO of 16 particles, {FULL.num_steps} steps, rate 0.05 to 0.0005",
    ),
    Setting(
        "evaluation",
        "-",
        f"`evidence`, {FULL.num_samples} draws of the guide, 4 x {FULL.num_draws} of NUTS",
    ),
]


def load(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """The design matrix with its column of ones (N, 1 + D), and labels (N,), in float64."""
    path = folder / TASKS[name].file
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            x, y = arrays["X"].astype(float), arrays["y"]
    else:
        table = np.loadtxt(path)
        x, y = table[:, :-1], table[:, -1]
    sd = x.std(0)
    scaled = (x - x.mean(0)) / np.where(sd > 0, sd, 1.0)  # a column of ionosphere is constant
    design = np.hstack([np.ones((len(x), 1)), scaled])
    return torch.from_numpy(design), torch.from_numpy((y == y.max()).astype(float))


def model(x: Tensor, y: Tensor, prior_sd: float) -> None:
    """Weights w in one site."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[-1]), prior_sd).to_event(1))
    logits = (w @ x.T).reshape(*w.shape[:-2], len(y))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def fitted(
    make_guide: type[AutoContinuous], data: tuple[Tensor, Tensor, float], num_steps: int
) -> AutoContinuous:
    """A Gaussian guide at the largest ELBO, to what the training reaches."""
    guide = make_guide(model, init_scale=0.3).double()
    objective = StandardELBO(16, vectorize_particles=True)
    fit(model, guide, *data, objective=objective, num_steps=num_steps, progress=False)
    return guide


def elbo(bounds: EvidenceBounds) -> tuple[float, float]:
    """The guide's ELBO and its standard error."""
    row = bounds.table.set_index("name").loc["ELBO"]
    return float(row["value"]), float(row["se"])


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Three numbers a data set: the mean-field optimum, and the evidence from both sides."""
    run = QUICK if options.quick else FULL
    for name in options.tasks:
        task = TASKS[name]
        data = (*load(options.data, name), task.prior_sd)
        pyro.set_rng_seed(0)
        narrow = fitted(AutoDiagonalNormal, data, run.num_steps)
        found = elbo(evidence(model, narrow, *data, num_samples=run.num_samples))
        yield Result(f"{name}: mean-field ELBO", (task.mean_field, 0.0), found, task.remark, 3)
        guide = fitted(AutoMultivariateNormal, data, run.num_steps)
        reference = nuts(model, *data, num_samples=run.num_draws, progress=False)
        bounds = evidence(model, guide, *data, reference=reference, num_samples=run.num_samples)
        found = elbo(bounds)
        yield Result(f"{name}: full-rank ELBO", (task.evidence, 0.0), found, "a lower bound", 3)
        for side, bound in {"lower": bounds.lower, "upper": bounds.upper}.items():
            if bound is not None:
                pair = (bound.value, bound.se)
                note = f"{bound.name}, k-hat {bounds.k_hat:.2f}"
                yield Result(f"{name}: {side} bound", (task.evidence, 0.0), pair, note, 3)


def main(arguments_: list[str]) -> list[Result]:
    """Print the tables."""
    parser = arguments(__doc__, "the folder of the UCI files")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    options = parser.parse_args(arguments_)
    return report(options, "Logistic regression, log evidence (nats)", SETTINGS, measure)


if __name__ == "__main__":
    main(sys.argv[1:])
