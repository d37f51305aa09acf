"""How much of a stochastic gradient is signal: parameter by parameter, and per second."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.infer import ELBO
from torch import Tensor

from pyro_elbo_lab.compilation.captured import parameters
from pyro_elbo_lab.programs.arguments import check_count, check_programs
from pyro_elbo_lab.programs.dims import element_names
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.state import forget_namesakes, seeded

__all__ = ["signal_to_noise"]

Program = Callable[..., Any]


def signal_to_noise(
    objectives: Mapping[str, ELBO],
    model: Program,
    guide: Program,
    *args: Any,
    num_evaluations: int = 200,
    seed: int = 0,
    **kwargs: Any,
) -> xr.Dataset:
    """Signal-to-noise ratios of the gradients of several objectives at the present parameters.

    The ratio of one gradient is |mean| / sd over evaluations, each with its own draws (and
    minibatch). The mean of n gradients has √n times that, so objectives of different cost compare
    by the ratio of what one second pays for, (|mean| / sd) / √(seconds an evaluation). A ratio
    below 1 / √num_evaluations is noise: that is the size of the estimate where the mean is 0.

    Gradients are those that SVI would take a step with (`loss_and_grads`), in the unconstrained
    parameters, of losses. Parameters and random states are as before afterwards. The seconds are
    those of this machine and hour.

    Args:
        objectives: losses by name: ours, `compiled` ones, Pyro's.
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of both.
        num_evaluations: of each objective, at least 2.
        seed: of the draws, the same for each objective.
        kwargs: keyword arguments of both.

    Returns:
        Over (objective, parameter), where a parameter is one number, `name[i, j]`: `mean` and `sd`
        of the gradient in nats, `snr` and `snr_per_root_second`. Over objective: `overall_snr`,
        the length of the mean gradient over the root of the summed variances, and
        `seconds`, of one evaluation. Where an objective does not read a parameter its gradient is
        0 and its ratio NaN.

    Raises:
        ValueError: no objectives, fewer than 2 evaluations, no parameters with gradients.
        TypeError: objectives that are none, or not given by name.

    References:
        Rainforth, Kosiorek, Le, Maddison, Igl, Wood and Teh (2018), Tighter variational bounds are
        not necessarily better, ICML.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro_elbo_lab.objectives.lower_bounds import StandardELBO
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 0.5))
        >>> found = signal_to_noise({"ours": StandardELBO(), "Pyro": Trace_ELBO()}, model, guide)
        >>> found["snr"].sizes
        Frozen({'objective': 2, 'parameter': 1})
        >>> found["mean"].values.ravel().round(0)  # of the loss: E[z] = 1
        array([1., 1.])
    """
    check_programs(model=model, guide=guide)
    if not isinstance(objectives, Mapping):
        raise TypeError(
            f"objectives is a {type(objectives).__name__}: pass losses by name, "
            "{'ELBO': StandardELBO()}"
        )
    for name, objective in objectives.items():
        if not hasattr(objective, "loss_and_grads"):
            raise TypeError(f"objectives[{name!r}] is {objective!r}, expected a loss as SVI takes")
    if not objectives:
        raise ValueError("objectives is empty: pass losses by name, {'ELBO': StandardELBO()}")
    check_count("num_evaluations", num_evaluations, least=2)
    forget_namesakes(guide)
    pair = Pair(model, guide, args, kwargs)
    leaves: dict[str, Tensor] = {}
    for objective in objectives.values():
        with seeded(seed):
            names, found = parameters(objective, pair)
        leaves |= {n: x for n, x in zip(names, found, strict=True) if x.requires_grad}
    if not leaves:
        raise ValueError("neither model nor guide has a parameter with a gradient (pyro.param)")
    kept = [leaf.grad for leaf in leaves.values()]
    runs = {}
    try:
        for name, objective in objectives.items():
            with seeded(seed):
                _gradient(objective, pair, leaves)  # what is done once is not timed
            with seeded(seed):
                started = time.perf_counter()
                rows = [_gradient(objective, pair, leaves) for _ in range(num_evaluations)]
                runs[name] = np.stack(rows), (time.perf_counter() - started) / num_evaluations
    finally:
        for leaf, gradient in zip(leaves.values(), kept, strict=True):
            leaf.grad = gradient
    labels = [label for name, leaf in leaves.items() for label in element_names(name, leaf.shape)]
    return _dataset(runs, labels)


def _gradient(objective: ELBO, pair: Pair, leaves: Mapping[str, Tensor]) -> np.ndarray:
    for leaf in leaves.values():
        leaf.grad = None
    objective.loss_and_grads(pair.model, pair.guide, *pair.args, **pair.kwargs)
    parts = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves.values()]
    return torch.cat([part.detach().reshape(-1).cpu().double() for part in parts]).numpy()


def _dataset(runs: Mapping[str, tuple[np.ndarray, float]], labels: list[str]) -> xr.Dataset:
    gradients = np.stack([rows for rows, _ in runs.values()])  # (objective, evaluation, parameter)
    seconds = np.array([time for _, time in runs.values()])
    mean, sd = gradients.mean(1), gradients.std(1, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # gradients without noise
        snr = np.abs(mean) / sd
        overall = np.linalg.norm(mean, axis=1) / np.linalg.norm(sd, axis=1)
    table = ("objective", "parameter")
    return xr.Dataset(
        {
            "mean": (table, mean),
            "sd": (table, sd),
            "snr": (table, snr),
            "snr_per_root_second": (table, snr / np.sqrt(seconds)[:, None]),
            "overall_snr": ("objective", overall),
            "seconds": ("objective", seconds),
        },
        coords={"objective": list(runs), "parameter": labels},
        attrs={
            "num_evaluations": gradients.shape[1],
            "noise": 1 / math.sqrt(gradients.shape[1]),
        },
    )
