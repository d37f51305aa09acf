"""The toy of Rainforth et al. (2018), with the exact signal and noise of gradients on it.

z ~ N(mu, I), x | z ~ N(z, I) in D = 20 dimensions, and a guide q(z) = N(A x + b, (2/3) I) whose A
and b are the optimum, I / 2 and mu / 2, with noise of scale 0.01. Gradients are those in b, for the
guide, and in mu, for the model.

The posterior is N(m, I / 2) with m = (mu + x) / 2, so that log-weights depend on the guide's noise
through its part along A x + b - m and the norm of the rest. Expectations over K particles follow
from two-dimensional integrals phi(t) = E exp(-t w) and alike, through

    1 / s^p = integral over t of t^(p - 1) exp(-t s) / (p - 1)!

The signal-to-noise ratio here is |mean| / sqrt(total variance) of a gradient, the root mean square
over its entries.

Rainforth et al. (2018), Tighter variational bounds are not necessarily better; Tucker, Lawson, Gu
and Maddison (2019), Doubly reparameterized gradient estimators.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from torch import Tensor

from pyro_elbo_lab import (
    CombinedImportanceWeighted,
    ImportanceWeightedELBO,
    Objective,
    PartiallyImportanceWeighted,
)
from tests.objectives.laws import toys
from tests.objectives.laws.estimation import values_and_gradients

D = 20
SCALE = math.sqrt(2 / 3)
PARTICLES = (1, 4, 16, 64, 256)
BUDGET = 64
"""K M of the partially importance-weighted bound, as in the paper."""


def _data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mu = randn(D)
    x = mu + math.sqrt(2) * randn(D)
    b = mu / 2 + 0.01 * randn(D)
    return x, mu, b, (torch.eye(D, dtype=torch.float64) / 2 + 0.01 * randn(D, D)) @ x


X, MU, B, AX = _data()
OFFSET = AX + B - (MU + X) / 2  # of the guide's mean from the posterior's


def _no_nodes(num_inner: int, num_outer: int, fixed: bool) -> toys.Nodes:
    raise NotImplementedError("see `signal_and_noise`")


def toy() -> toys.Toy:
    """With the parameters b and mu, in this order."""
    parameters = {"b": B.clone().requires_grad_(), "mu": MU.clone().requires_grad_()}
    one = torch.ones(D, dtype=torch.float64)

    def model() -> None:
        mu = toys.parameter(parameters, "mu")
        z = pyro.sample("z", dist.Normal(mu, one).to_event(1))
        pyro.sample("x", dist.Normal(z, one).to_event(1), obs=X)

    def guide() -> None:
        b = toys.parameter(parameters, "b")
        pyro.sample("z", dist.Normal(AX + b, SCALE * one).to_event(1))

    return toys.Toy(model, guide, parameters, _no_nodes)


# What is exact

LOG_T = torch.arange(-35.0, 30.0, 0.1, dtype=torch.float64)


@dataclass(frozen=True)
class Moments:
    """E[(value) exp(-t w)] at every t, for particles with weight w and gradient a.

    Attributes:
        phi: of 1.
        a: of the entry of a along the offset; that of the others is 0.
        fa: of f(w) a, along the offset.
        wa2: of w |a|^2.
        f2a2: of f(w)^2 |a|^2.
    """

    phi: Tensor
    a: Tensor
    fa: Tensor
    wa2: Tensor
    f2a2: Tensor


def _nodes() -> tuple[Tensor, Tensor, Tensor]:
    """Of the noise: its entry along the offset, the squared norm of the rest, their weight."""
    along = torch.linspace(-8.5, 8.5, 101, dtype=torch.float64)
    rest = torch.linspace(0.0, 100.0, 251, dtype=torch.float64)[1:]
    weight = torch.outer(
        torch.as_tensor(stats.norm.pdf(along)) * (along[1] - along[0]),
        torch.as_tensor(stats.chi2.pdf(rest, D - 1)) * (rest[1] - rest[0]),
    )
    return along[:, None], rest, weight


@cache
def moments(*, doubly: bool) -> Moments:
    """Of the pathwise gradient with f(w) = w, or of the doubly reparameterized one with w^2."""
    along, rest, weight = _nodes()
    offset = OFFSET.norm()
    distance = (offset + SCALE * along) ** 2 + SCALE**2 * rest  # |z - m|^2
    log_w = D / 2 * math.log(4 / 3) - distance + (along**2 + rest) / 2
    a = -2 * (offset + SCALE * along) + (along / SCALE if doubly else 0.0)
    a2 = a**2 + (1 / SCALE * doubly - 2 * SCALE) ** 2 * rest
    w = log_w.exp()
    f = w**2 if doubly else w
    values = [torch.ones_like(w), a.expand_as(w), f * a, w * a2, f**2 * a2]
    columns = torch.stack([(weight * v).reshape(-1) for v in values], 1)
    rows = [(-(t + log_w.reshape(-1)).exp()).exp() @ columns for t in LOG_T]
    return Moments(*torch.stack(rows, 1))


def _integral(values: Tensor, power: int) -> float:
    """Of t^(power - 1) values / (power - 1)! over t."""
    step = LOG_T[1] - LOG_T[0]
    return ((power * LOG_T).exp() * values).sum().item() * step.item() / math.factorial(power - 1)


@dataclass(frozen=True)
class SignalAndNoise:
    """The mean of a gradient and the sum of its entries' variances."""

    mean: Tensor
    variance: float

    @property
    def ratio(self) -> float:
        return self.mean.norm().item() / math.sqrt(self.variance)


def weighted(num_particles: int, *, doubly: bool = False) -> SignalAndNoise:
    """sum_k f(w_k) a_k / (sum_k w_k)^p, the guide's gradient of IW_K."""
    e, k, p = moments(doubly=doubly), num_particles, 2 if doubly else 1
    mean = _integral(k * e.fa * e.phi ** (k - 1), p)
    square = k * e.f2a2 * e.phi ** (k - 1)
    if k > 1:
        square = square + k * (k - 1) * e.fa**2 * e.phi ** (k - 2)
    return SignalAndNoise(mean * OFFSET / OFFSET.norm(), _integral(square, 2 * p) - mean**2)


def combined(num_particles: int, beta: float) -> SignalAndNoise:
    """beta times the mean of a_k plus (1 - beta) times the weighted mean."""
    e, k = moments(doubly=False), num_particles
    importance, elbo = weighted(k), weighted(1)
    product = e.wa2 * e.phi ** (k - 1)
    if k > 1:
        product = product + (k - 1) * e.fa * e.a * e.phi ** (k - 2)
    covariance = _integral(product, 1) - (importance.mean @ elbo.mean).item()
    variance = beta**2 * elbo.variance / k + (1 - beta) ** 2 * importance.variance
    variance += 2 * beta * (1 - beta) * covariance
    return SignalAndNoise(beta * elbo.mean + (1 - beta) * importance.mean, variance)


def of_model(num_particles: int) -> SignalAndNoise:
    """sum_k w_k (z_k - mu) / sum_k w_k, where z - m = -a / 2 for the pathwise a."""
    guide = weighted(num_particles)
    return SignalAndNoise((X - MU) / 2 - guide.mean / 2, guide.variance / 4)


def averaged(num_inner: int, num_outer: int) -> SignalAndNoise:
    """Of M independent bounds."""
    one = weighted(num_inner)
    return SignalAndNoise(one.mean, one.variance / num_outer)


# What is measured

FAST: dict[str, Any] = {"vectorize_particles": True}


@dataclass(frozen=True)
class Row:
    """An estimator of the gradient in one parameter, by K."""

    name: str
    parameter: str
    build: Callable[[int], Objective]
    exact: Callable[[int], SignalAndNoise]
    particles: tuple[int, ...] = PARTICLES


def _importance(num_particles: int, gradient: str) -> Objective:
    return ImportanceWeightedELBO(num_particles, gradient=gradient, **FAST)  # type: ignore[arg-type]


def _combined(num_particles: int, beta: float) -> Objective:
    return CombinedImportanceWeighted(beta, num_particles, "pathwise", **FAST)


def _partially(num_particles: int) -> Objective:
    return PartiallyImportanceWeighted(num_particles, BUDGET // num_particles, "pathwise", **FAST)


WITHIN_BUDGET = tuple(k for k in PARTICLES if k <= BUDGET)
ROWS = {
    row.name: row
    for row in (
        Row("IW pathwise", "b", partial(_importance, gradient="pathwise"), weighted),
        Row(
            "IW doubly reparameterized",
            "b",
            partial(_importance, gradient="doubly_reparameterized"),
            partial(weighted, doubly=True),
        ),
        Row("IW, model", "mu", partial(_importance, gradient="pathwise"), of_model),
        Row(
            "CIWAE 0.05 pathwise", "b", partial(_combined, beta=0.05), partial(combined, beta=0.05)
        ),
        Row("CIWAE 0.5 pathwise", "b", partial(_combined, beta=0.5), partial(combined, beta=0.5)),
        Row(
            "PIWAE pathwise",
            "b",
            _partially,
            lambda k: averaged(k, BUDGET // k),
            WITHIN_BUDGET,
        ),
        Row("PIWAE, model", "mu", _partially, lambda k: of_model(BUDGET), WITHIN_BUDGET),
    )
}


def gradients(row: Row, num_particles: int, num_evaluations: int) -> Tensor:
    """Of what is maximized, (N, D)."""
    both = values_and_gradients(row.build(num_particles), toy(), num_evaluations)[1]
    return both[:, :D] if row.parameter == "b" else both[:, D:]


@dataclass(frozen=True)
class Ratios:
    """Signal-to-noise ratios of a row by K, whose noise is measured and whose signal is exact."""

    row: Row
    values: list[float]
    relative_errors: list[float]

    @property
    def slope(self) -> tuple[float, float]:
        """Of log ratio in log K by least squares, and its standard error."""
        share = _shares(self.row.particles)
        logs = torch.tensor(self.values, dtype=torch.float64).log()
        errors = torch.tensor(self.relative_errors, dtype=torch.float64)
        return (share @ logs).item(), (share * errors).norm().item()


def _shares(particles: tuple[int, ...]) -> Tensor:
    k = torch.tensor(particles, dtype=torch.float64).log()
    k = k - k.mean()
    return k / (k @ k)


def ratios(row: Row, num_evaluations: int) -> Ratios:
    """With standard errors by the delta method."""
    values, errors = [], []
    for k in row.particles:
        signal = row.exact(k).mean
        squares = ((gradients(row, k, num_evaluations) - signal) ** 2).sum(1)
        variance = squares.mean().item()
        values.append(signal.norm().item() / math.sqrt(variance))
        errors.append(squares.std().item() / variance / math.sqrt(len(squares)) / 2)
    return Ratios(row, values, errors)


def exact_slope(row: Row) -> float:
    """What the slope of `Ratios` is expected to be."""
    exact = torch.tensor([row.exact(k).ratio for k in row.particles], dtype=torch.float64)
    return (_shares(row.particles) @ exact.log()).item()


def local_slope(row: Row, num_particles: int) -> float:
    """Between K and 2 K, exact."""
    ratio = row.exact(2 * num_particles).ratio / row.exact(num_particles).ratio
    return math.log(ratio, 2)


def table(measured: list[Ratios]) -> str:
    """Ratios by K; measured slope, its standard error and the exact slope."""
    columns = sorted({k for one in measured for k in one.row.particles})
    head = f"{'signal / noise at K =':26}" + "".join(f"{k:>9}" for k in columns)
    lines = [head + f"{'slope':>9} {'error':>6} {'exact':>7}"]
    for one in measured:
        values = {k: f"{v:9.4f}" for k, v in zip(one.row.particles, one.values, strict=True)}
        cells = "".join(values.get(k, " " * 9) for k in columns)
        slope, error = one.slope
        end = f"{slope:9.3f} {error:6.3f} {exact_slope(one.row):7.3f}"
        lines.append(f"{one.row.name:26}{cells}{end}")
    return "\n".join(lines)
