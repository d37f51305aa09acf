"""The local level model: a river's flow, seen with noise, around a level that wanders.

    start ~ Normal(0, 2),  wander ~ HalfNormal(1),  noise ~ HalfNormal(1),
    step_t ~ Normal(0, 1),  level_t = start + wander sum_{s <= t} step_s,
    y_t ~ Normal(level_t, noise),  t = 1..100.

The flow is standardized. The steps are sampled and the levels follow (the non-centered form), in
one site: a level is a sum over time, so time is no plate of the latents.

Given the two sds everything is Gaussian, and a Kalman filter integrates the levels out
(`log_likelihood`). What is left is an integral over two logarithms (`exact`).

Data: the Nile at Aswan, 1871 to 1970; G. W. Cobb (1978), The problem of the Nile: conditional
solution to a changepoint problem, Biometrika 65. Model as in J. Durbin and S. J. Koopman (2001),
Time series analysis by state space methods, chapter 2, where the variances that maximize the
likelihood are 15099 for the noise and 1469.1 for the wandering, in the units of `flow`.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

START_SD = 2.0


def flow() -> Tensor:
    """Annual flow in 10^8 cubic metres, shape (100,), float64."""
    values = """
    1120 1160  963 1210 1160 1160  813 1230 1370 1140  995  935 1110  994 1020  960 1180  799
     958 1140 1100 1210 1150 1250 1260 1220 1030 1100  774  840  874  694  940  833  701  916
     692 1020 1050  969  831  726  456  824  702 1120 1100  832  764  821  768  845  864  862
     698  845  744  796 1040  759  781  865  845  944  984  897  822 1010  771  676  649  846
     812  742  801 1040  860  874  848  890  744  749  838 1050  918  986  797  923  975  815
    1020  906  901 1170  912  746  919  718  714  740
    """
    return torch.tensor([float(value) for value in values.split()], dtype=torch.float64)


def data() -> tuple[Tensor]:
    """Standardized flow y, shape (100,)."""
    y = flow()
    return (((y - y.mean()) / y.std(correction=0)).to(torch.get_default_dtype()),)


def model(y: Tensor) -> None:
    """Steps of shape (100,) in one site; observations in the plate "year"."""
    start = pyro.sample("start", dist.Normal(y.new_zeros(()), START_SD))
    wander = pyro.sample("wander", dist.HalfNormal(y.new_ones(())))
    noise = pyro.sample("noise", dist.HalfNormal(y.new_ones(())))
    step = pyro.sample("step", dist.Normal(torch.zeros_like(y), 1.0).to_event(1))
    # step is (T,), or (..., 1, T) where an outer plate stands to the left of "year".
    walk = step.cumsum(-1).reshape(*step.shape[:-2], len(y))
    with pyro.plate("year", len(y)):
        level = pyro.deterministic("level", start + wander * walk, event_dim=0)
        pyro.sample("y", dist.Normal(level, noise), obs=y)


def log_likelihood(y: Tensor, wander: Tensor, noise: Tensor, start_sd: float = START_SD) -> Tensor:
    """log p(y | wander, noise) by the Kalman filter, start and levels integrated out.

    Args:
        y: observations, shape (T,).
        wander, noise: shape (...).
        start_sd: sd of the start, whose mean is 0.

    Returns:
        Shape (...), in nats.
    """
    mean, variance = torch.zeros_like(wander), torch.full_like(wander, start_sd**2)
    total = torch.zeros_like(wander)
    for value in y:
        variance = variance + wander**2
        total_variance = variance + noise**2
        total = total + dist.Normal(mean, total_variance.sqrt()).log_prob(value)
        gain = variance / total_variance
        mean = mean + gain * (value - mean)
        variance = (1 - gain) * variance
    return total


def exact(y: Tensor, num_nodes: int = 201) -> dict[str, Any]:
    """Log evidence and the moments of the two sds, by the trapezoidal rule over their logarithms.

    Args:
        y: observations, shape (T,).
        num_nodes: how many values of each logarithm; of wander from -25 to 3, of noise from -7
            to 3.

    Returns:
        `log_evidence`, log p(y) in nats; `mean` and `sd` of wander and noise, as float64 tensors.
    """
    y = y.double()
    bounds = {"wander": (-25.0, 3.0), "noise": (-7.0, 3.0)}
    axes = [torch.linspace(*b, num_nodes, dtype=y.dtype, device=y.device) for b in bounds.values()]
    grid = torch.cartesian_prod(*axes)
    nodes = dict(zip(bounds, grid.exp().T, strict=True))
    cell = math.prod((high - low) / (num_nodes - 1) for low, high in bounds.values())
    prior = dist.HalfNormal(torch.ones_like(grid)).log_prob(grid.exp())
    log_joint = (prior + grid).sum(-1) + log_likelihood(y, **nodes) + math.log(cell)
    log_evidence = log_joint.logsumexp(0)
    weight = (log_joint - log_evidence).exp()
    mean = {name: weight @ value for name, value in nodes.items()}
    sd = {name: (weight @ (value - mean[name]) ** 2).sqrt() for name, value in nodes.items()}
    return {"log_evidence": float(log_evidence), "mean": mean, "sd": sd}
