"""Test error of Bayesian neural networks fitted by Renyi bounds.

Run from the project's root: python -m tests.benchmarks.papers.bnn_renyi --data FOLDER

    w ~ Normal(0, I),  y_i ~ Normal(f_w(x_i), s^2),

with f one layer of 50 rectified units, everything standardized by the training set, and the noise s
learnt. The folder has UCI's `boston.txt`, `concrete.txt`, `wine.txt` and `yacht.txt`, the target in
the last column. Their bound of a minibatch has the likelihood to the power N / M inside the
logarithm ("energy approximation"), and so has ours: it is no bound of the full data's evidence
except at alpha = 1.

Source: Y. Li and R. E. Turner (2016), Renyi divergence variational inference, NeurIPS; the tables
of the appendix, and the settings there and in the authors' code.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.optim import Adam
from torch import Tensor

from pyro_elbo_lab import RenyiELBO, fit
from tests.benchmarks.papers.minibatches import Batches
from tests.benchmarks.papers.published import Result, Setting, arguments, report

PUBLISHED = {  # negative test log-likelihood in nats, and test RMSE, mean and standard error
    ("boston", 0.0): ((2.47, 0.07), (2.85, 0.17)),
    ("boston", 0.5): ((2.46, 0.07), (2.85, 0.15)),
    ("boston", 1.0): ((2.52, 0.03), (2.89, 0.17)),
    ("concrete", 0.0): ((3.08, 0.02), (5.24, 0.11)),
    ("concrete", 0.5): ((3.09, 0.02), (5.34, 0.10)),
    ("concrete", 1.0): ((3.11, 0.02), (5.42, 0.11)),
    ("wine", 0.0): ((0.95, 0.01), (0.64, 0.01)),
    ("wine", 0.5): ((0.95, 0.01), (0.64, 0.01)),
    ("wine", 1.0): ((0.96, 0.01), (0.63, 0.01)),
    ("yacht", 0.0): ((1.83, 0.01), (1.24, 0.11)),
    ("yacht", 0.5): ((1.82, 0.01), (1.11, 0.08)),
    ("yacht", 1.0): ((1.77, 0.01), (0.81, 0.05)),
}
DATA = ["boston", "concrete", "wine", "yacht"]
ALPHAS = [0.0, 0.5, 1.0]
NUM_HIDDEN = 50
NUM_PARTICLES = 100
BATCH_SIZE = 32
NUM_EPOCHS = 500
LEARNING_RATE = 1e-3
TEST_SHARE = 0.1


class Split(NamedTuple):
    """Standardized training data, and test data with covariates standardized likewise.

    Attributes:
        x: (N, D).
        y: (N,), standardized.
        x_test: (T, D).
        y_test: (T,), in its own units.
        center: mean of the training targets.
        scale: their sd.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    center: float
    scale: float


def split(table: np.ndarray, seed: int) -> Split:
    """A random tenth is held out."""
    order = np.random.default_rng(seed).permutation(len(table))
    num_test = round(TEST_SHARE * len(table))
    test, train = table[order[:num_test]], table[order[num_test:]]
    mean, sd = train.mean(0), train.std(0)
    sd[sd == 0] = 1
    scaled, scaled_test = (torch.from_numpy((part - mean) / sd).float() for part in (train, test))
    y_test = torch.from_numpy(test[:, -1]).float()
    return Split(scaled[:, :-1], scaled[:, -1], scaled_test[:, :-1], y_test, mean[-1], sd[-1])


def num_weights(num_covariates: int) -> int:
    """Of the network, biases included."""
    return NUM_HIDDEN * (num_covariates + 1) + NUM_HIDDEN + 1


def network(w: Tensor, x: Tensor) -> Tensor:
    """f_w(x), from weights (..., W) and covariates (N, D) to (..., N)."""
    num_covariates = x.shape[-1]
    sizes = [NUM_HIDDEN * num_covariates, NUM_HIDDEN, NUM_HIDDEN, 1]
    inner, inner_bias, outer, outer_bias = w.split(sizes, -1)
    inner = inner.unflatten(-1, (num_covariates, NUM_HIDDEN))
    hidden = torch.relu(x @ inner + inner_bias.unsqueeze(-2))
    return (hidden @ outer.unsqueeze(-1)).squeeze(-1) + outer_bias


def model(x: Tensor, y: Tensor, weight: float) -> None:
    """Weights in one site.

    Args:
        x: covariates of a minibatch.
        y: their targets.
        weight: N / M, the power of the minibatch's likelihood.
    """
    log_variance = pyro.param("log_noise_variance", lambda: x.new_zeros(()))
    w = pyro.sample("w", dist.Normal(x.new_zeros(num_weights(x.shape[-1])), 1.0).to_event(1))
    f = network(w, x)
    f = f.reshape(*w.shape[:-2], len(y)) if w.dim() > 1 else f
    with pyro.poutine.scale(scale=weight), pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(f, (0.5 * log_variance).exp()), obs=y)


def guide(x: Tensor, y: Tensor, weight: float) -> None:
    """A Gaussian: the prior times independent Gaussian factors, as the paper's code has it."""
    size = num_weights(x.shape[-1])
    mean = pyro.param("factor_mean", lambda: 0.1 * torch.randn(size))
    log_variance = pyro.param("factor_log_variance", lambda: 0.1 * torch.randn(size) - 10)
    precision = (-log_variance).exp()
    variance = 1 / (precision + 1)
    pyro.sample("w", dist.Normal(mean * precision * variance, variance.sqrt()).to_event(1))


def errors(part: Split, weight: float) -> tuple[float, float]:
    """Negative test log-likelihood in nats and RMSE, with K draws of the fitted guide."""
    with torch.no_grad(), pyro.poutine.trace() as run, pyro.plate("draw", NUM_PARTICLES):
        guide(part.x, part.y, weight)
    f = part.center + part.scale * network(run.trace.nodes["w"]["value"], part.x_test)
    noise = part.scale * (0.5 * pyro.param("log_noise_variance")).exp()
    log_p = dist.Normal(f, noise).log_prob(part.y_test)
    mean_log_p = torch.logsumexp(log_p, 0).mean() - math.log(NUM_PARTICLES)
    return -mean_log_p.item(), (part.y_test - f.mean(0)).square().mean().sqrt().item()


def trained(part: Split, alpha: float, num_epochs: int) -> tuple[float, float]:
    """Fit a split and return `errors`."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    batches = Batches((part.x, part.y), BATCH_SIZE)
    weight = len(part.y) / BATCH_SIZE
    objective = RenyiELBO(alpha, NUM_PARTICLES, gradient="pathwise", vectorize_particles=True)
    fit(
        model, guide, objective=objective, optimizer=Adam({"lr": LEARNING_RATE}), batches=batches,
        num_steps=num_epochs * math.ceil(weight), progress=False, weight=weight,
    )  # fmt: skip
    return errors(part, weight)


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Negative test log-likelihood and RMSE over splits, by data set and alpha."""
    num_splits, num_epochs = (2, 20) if options.quick else (options.splits, NUM_EPOCHS)
    for name in options.tasks:
        table = np.loadtxt(options.data / f"{name}.txt")
        for alpha in options.alphas:
            found = [trained(split(table, seed), alpha, num_epochs) for seed in range(num_splits)]
            mean, sd = np.mean(found, 0), np.std(found, 0, ddof=1) / math.sqrt(num_splits)
            for i, quantity in enumerate(("-log p (nats)", "RMSE")):
                ours = (float(mean[i]), float(sd[i]))
                label = f"{name}, alpha = {alpha}: {quantity}"
                yield Result(label, PUBLISHED[name, alpha][i], ours, f"{num_splits} splits")


def settings(num_splits: int) -> list[Setting]:
    """The paper's, from its appendix and its code, and ours."""
    return [
        Setting("network", f"{NUM_HIDDEN} rectified units", "the same"),
        Setting("prior, guide", "N(0, I); mean-field Gaussian", "the same"),
        Setting("start (code)", "means 0.1 N(0, 1), log variances -10 + 0.1 N(0, 1)", "the same"),
        Setting("particles", f"K = {NUM_PARTICLES}, pathwise gradient", "the same"),
        Setting("KL at alpha = 1", "analytic", "Monte Carlo, K draws"),
        Setting("Adam", f"rate {LEARNING_RATE}, {NUM_EPOCHS} epochs", "the same"),
        Setting(
            "batches",
            f"{BATCH_SIZE}, the last of an epoch smaller",
            f"{BATCH_SIZE} always, as many steps",
        ),
        Setting("splits", "20, 90 % for training", f"{num_splits} of our own, 90 %"),
        Setting("alpha", "also -infinity and infinity", "0, 0.5 and 1"),
        Setting("wine", "1588 rows", "1599 rows (red wines of UCI)"),
    ]


NOTE = "± are standard errors over splits: the paper's of 20, ours of other ones."


def main(arguments_: list[str]) -> list[Result]:
    """Print the tables."""
    parser = arguments(__doc__, "the folder of the UCI files")
    parser.add_argument("--tasks", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--alphas", nargs="+", type=float, choices=ALPHAS, default=ALPHAS)
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args(arguments_)
    title = "Bayesian neural networks, test error"
    return report(options, title, settings(options.splits), measure, NOTE)


if __name__ == "__main__":
    main(sys.argv[1:])
