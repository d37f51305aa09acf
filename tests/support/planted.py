"""Draws whose distances from each other are known in closed form."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

SITES = ["north", "south"]


def tree(
    mu: np.ndarray,
    theta: np.ndarray | None = None,
    log_weight: np.ndarray | None = None,
    **attrs: Any,
) -> xr.DataTree:
    """A DataTree of ``mu`` (chain, draw) and ``theta`` (chain, draw, 2)."""
    posterior: dict[str, Any] = {"mu": (("chain", "draw"), mu)}
    if theta is not None:
        posterior["theta"] = (("chain", "draw", "site"), theta)
    coords: Mapping[str, Any] = {} if theta is None else {"site": SITES}
    groups = {"posterior": xr.Dataset(posterior, coords)}
    if log_weight is not None:
        groups["sample_stats"] = xr.Dataset({"log_weight": (("chain", "draw"), log_weight)})
    result = xr.DataTree.from_dict(groups)
    result.attrs.update(attrs)
    return result


def standard_normal(seed: int, num_draws: int = 1000, **attrs: Any) -> xr.DataTree:
    """Four chains of independent draws of mu, theta[north], theta[south] ~ Normal(0, 1)."""
    z = np.random.default_rng(seed).normal(size=(4, num_draws, 3))
    return tree(z[..., 0], z[..., 1:], **attrs)


def normal(seed: int, shift: float = 0.0, scale: float = 1.0, num_draws: int = 4000) -> xr.DataTree:
    """Draws of a guide Normal(shift, scale) for :func:`standard_normal`, with log-weights."""
    z = np.random.default_rng(seed).normal(size=(1, num_draws, 3))
    x = shift + scale * z
    log_weight = (z**2 / 2 - x**2 / 2 + (np.log(scale) if scale else 0.0)).sum(-1)
    return tree(x[..., 0], x[..., 1:], log_weight)


def vector(
    z: np.ndarray, name: str = "x", log_weight: np.ndarray | None = None, **stats: np.ndarray
) -> xr.DataTree:
    """A DataTree of one variable, ``z`` (chain, draw, i), and sample_stats (chain, draw)."""
    groups = {"posterior": xr.Dataset({name: (("chain", "draw", "i"), z)})}
    stats |= {} if log_weight is None else {"log_weight": log_weight}
    if stats:
        groups["sample_stats"] = xr.Dataset(
            {key: (("chain", "draw"), values) for key, values in stats.items()}
        )
    return xr.DataTree.from_dict(groups)


@dataclass(frozen=True)
class Failure:
    """An approximation whose verdict is known, and words that its sentence must have."""

    kind: str
    advice: str
    build: Callable[[np.random.Generator], tuple[xr.DataTree, xr.DataTree, np.ndarray | None]]


N = 2000  # draws of a guide
CHAINS = (4, 1000)  # draws of a reference, all independent


def gaussian_log_weight(x: np.ndarray, log_p: np.ndarray, loc: Any, scale: Any) -> np.ndarray:
    """log p - log q of draws (..., d) of a guide Normal(loc, scale), up to a constant."""
    return log_p + (((x - loc) / scale) ** 2 / 2).sum(-1)


def good(rng: np.random.Generator) -> Any:
    """The posterior itself, in five dimensions."""
    return vector(rng.normal(size=(1, N, 5)), log_weight=np.zeros((1, N))), exact(rng, 5), None


def nearly_good(rng: np.random.Generator) -> Any:
    """Means off by 0.05 sd and sds by 5 %, in a heavier direction: within tolerance."""
    z = rng.normal(size=(1, N, 3))
    x = 0.05 + 1.05 * z
    return vector(x, log_weight=(z**2 / 2 - x**2 / 2).sum(-1)), exact(rng, 3), None


def exact(rng: np.random.Generator, d: int) -> xr.DataTree:
    return vector(rng.normal(size=(*CHAINS, d)))


def mode_collapse(rng: np.random.Generator) -> Any:
    """Half of the posterior at -4 and half at 4 in one of two dimensions; the guide sees one."""
    reference = rng.normal(size=(*CHAINS, 2))
    reference[..., 0] += np.where(rng.uniform(size=CHAINS) < 0.5, -4, 4)
    x = rng.normal([4, 0], 1, size=(1, N, 2))
    log_p = np.logaddexp(-((x[..., 0] - 4) ** 2) / 2, -((x[..., 0] + 4) ** 2) / 2)
    log_p -= x[..., 1] ** 2 / 2
    return vector(x, log_weight=gaussian_log_weight(x, log_p, [4, 0], 1)), vector(reference), None


def funnel(rng: np.random.Generator) -> Any:
    """Neal's funnel (2003), v ~ N(0, 3), x_i ~ N(0, exp(v/2)), i = 1..4, and its mean-field fit.

    The ELBO of v ~ N(m, s), x_i ~ N(0, t) is largest at m = 0, 1/s² = 1/9 + 4/2, t² = exp(-s²/2).
    """
    v = 3 * rng.normal(size=CHAINS)
    reference = np.exp(v / 2)[..., None] * rng.normal(size=(*CHAINS, 4))
    s = 1 / np.sqrt(1 / 9 + 4 / 2)
    scale = np.array([s, *[np.exp(-(s**2) / 4)] * 4])
    x = scale * rng.normal(size=(1, N, 5))
    log_p = -(x[..., 0] ** 2) / 18 - 2 * x[..., 0]
    log_p -= (x[..., 1:] ** 2).sum(-1) * np.exp(-x[..., 0]) / 2
    q = vector(x, log_weight=gaussian_log_weight(x, log_p, 0, scale))
    return q, vector(np.concatenate([v[..., None], reference], -1)), None


def banana(rng: np.random.Generator) -> Any:
    """x ~ N(0, 1), y ~ N(x² - 1, 1/2), and its mean-field fit.

    The ELBO of x ~ N(0, s), y ~ N(m, t) is largest at 16 s⁴ + s² = 1, m = s² - 1, t = 1/2.
    """
    x = rng.normal(size=CHAINS)
    reference = np.stack([x, x**2 - 1 + rng.normal(size=CHAINS) / 2], -1)
    variance = (np.sqrt(65) - 1) / 32
    loc, scale = np.array([0, variance - 1]), np.sqrt([variance, 0.25])
    q = loc + scale * rng.normal(size=(1, N, 2))
    log_p = -(q[..., 0] ** 2) / 2 - 2 * (q[..., 1] - q[..., 0] ** 2 + 1) ** 2
    return vector(q, log_weight=gaussian_log_weight(q, log_p, loc, scale)), vector(reference), None


RHO = 0.95


def correlated(rng: np.random.Generator) -> Any:
    """A normal posterior with correlation 0.95: the mean-field sds are 1/√Λ_ii = √(1 - 0.95²)."""
    z = rng.normal(size=(*CHAINS, 2))
    reference = np.stack([z[..., 0], RHO * z[..., 0] + np.sqrt(1 - RHO**2) * z[..., 1]], -1)
    scale = np.sqrt(1 - RHO**2)
    x = scale * rng.normal(size=(1, N, 2))
    log_p = -(x[..., 0] ** 2 - 2 * RHO * x[..., 0] * x[..., 1] + x[..., 1] ** 2) / 2 / scale**2
    return vector(x, log_weight=gaussian_log_weight(x, log_p, 0, scale)), vector(reference), None


def shifted(rng: np.random.Generator) -> Any:
    """All five means off by 2 sd."""
    x = 2 + rng.normal(size=(1, N, 5))
    log_p = -(x**2).sum(-1) / 2
    return vector(x, log_weight=gaussian_log_weight(x, log_p, 2, 1)), exact(rng, 5), None


def slightly_shifted(rng: np.random.Generator) -> Any:
    """One of five means off by 0.3 sd, and no log-weights."""
    return vector(rng.normal([0.3, 0, 0, 0, 0], 1, size=(1, N, 5))), exact(rng, 5), None


def light_tails(rng: np.random.Generator) -> Any:
    """A posterior of Student t with 3 degrees of freedom, and the best normal: E_q log p largest.

    The scale solves E[4 σ² z² / (3 + σ² z²)] = 1, z ~ N(0, 1).
    """
    scale = 1.22
    x = scale * rng.normal(size=(1, N, 3))
    log_p = -2 * np.log1p(x**2 / 3).sum(-1)
    q = vector(x, log_weight=gaussian_log_weight(x, log_p, 0, scale))
    return q, vector(rng.standard_t(3, size=(*CHAINS, 3))), None


def heavy_tails(rng: np.random.Generator) -> Any:
    """A guide of Student t, 2 degrees of freedom, for a normal posterior with its quartiles."""
    scale = stats.norm.ppf(0.75) / stats.t.ppf(0.75, 2)
    return vector(scale * rng.standard_t(2, size=(1, N, 3))), exact(rng, 3), None


def training(rng: np.random.Generator, num_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, sd and losses of a mean-field fit of N(3, 1) in five dimensions by plain SGD."""
    loc, log_scale, losses = np.zeros(5), np.full(5, np.log(0.1)), []
    for _ in range(num_steps):
        z = rng.normal(size=5)
        x = loc + np.exp(log_scale) * z
        losses.append(((x - 3) ** 2 / 2 - z**2 / 2 - log_scale).sum())
        loc = loc - 0.005 * (x - 3)
        log_scale = log_scale - 0.005 * ((x - 3) * np.exp(log_scale) * z - 1)
    return loc, np.exp(log_scale), np.array(losses)


def unconverged(rng: np.random.Generator) -> Any:
    """Stopped after 200 steps of stochastic gradients of which it takes a thousand."""
    return trained(rng, 200)


def trained(rng: np.random.Generator, num_steps: int) -> Any:
    loc, scale, losses = training(rng, num_steps)
    x = loc + scale * rng.normal(size=(1, N, 5))
    q = vector(x, log_weight=gaussian_log_weight(x, -((x - 3) ** 2).sum(-1) / 2, loc, scale))
    return q, vector(3 + rng.normal(size=(*CHAINS, 5))), losses


def divergent(rng: np.random.Generator) -> Any:
    """A good approximation beside a reference of which 2 % of the transitions diverged."""
    diverging = rng.permutation(np.arange(4000) < 80).reshape(CHAINS)
    return good(rng)[0], vector(rng.normal(size=(*CHAINS, 5)), diverging=diverging), None


def stuck(rng: np.random.Generator) -> Any:
    """A good approximation beside a reference of which one chain has found another place."""
    z = rng.normal(size=(*CHAINS, 5))
    z[2] += 1
    return good(rng)[0], vector(z), None


def half_seen(rng: np.random.Generator) -> Any:
    """A guide that is exact on both modes beside a reference that has found one of them."""
    x = rng.normal(size=(1, N, 2))
    x[..., 0] += np.where(rng.uniform(size=(1, N)) < 0.5, -4, 4)
    return vector(x, log_weight=np.zeros((1, N))), vector(rng.normal([4, 0], 1, (*CHAINS, 2))), None


PLANTED = {
    "good": Failure("good", "k-hat", good),
    "nearly good": Failure("good", "k-hat", nearly_good),
    "mode collapse": Failure("wrong mode", "initial values", mode_collapse),
    "funnel": Failure("under-dispersed", "non-centered", funnel),
    "banana": Failure("under-dispersed and biased", "in a curve", banana),
    "scale under-estimation": Failure("under-dispersed", "full-rank", correlated),
    "shifted mean": Failure("biased", "more steps", shifted),
    "slightly shifted mean": Failure("biased", "more steps", slightly_shifted),
    "light tails": Failure("light tails", "Student's t", light_tails),
    "heavy tails": Failure("heavy tails", "Student's t", heavy_tails),
    "unconverged fit": Failure("unconverged", "larger steps", unconverged),
    "divergent reference": Failure("reference unreliable", "80 of 4000", divergent),
    "reference in one mode": Failure("reference unreliable", "never visits", half_seen),
    "stuck reference": Failure("reference unreliable", "R-hat of x[", stuck),
}
