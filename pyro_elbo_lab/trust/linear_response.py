"""Covariances that a mean-field guide leaves out, from how its means respond to a push."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from pyro_elbo_lab.objectives.particles.guide_draws import GuideDraws, guide_draws
from pyro_elbo_lab.objectives.particles.probe import probe
from pyro_elbo_lab.objectives.particles.sobol import Placement, gaussian_latents
from pyro_elbo_lab.programs.arguments import check_count, check_programs
from pyro_elbo_lab.programs.dims import element_names
from pyro_elbo_lab.programs.inventory import inventory
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.state import forget_namesakes, seeded
from pyro_elbo_lab.programs.structure.analysis import Structure

__all__ = ["linear_response"]

Program = Callable[..., Any]

_FAR = 0.25
"""A Newton step that moves a mean by more of its sd than this is no rounding error of training."""


def linear_response(
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 1024,
    seed: int = 0,
    **kwargs: Any,
) -> xr.Dataset:
    """Posterior covariances from a fitted guide that has none, such as a mean-field one.

    Adding t g(z) to the log density moves the optimal guide, and the posterior covariance of g
    with h is how fast E[h] moves with t. For a guide at its optimum with parameters η this is

        cov(g, h) = ∂E_q[g]/∂η · H⁻¹ · ∂E_q[h]/∂η,   H = -∂²ELBO/∂η².

    It is exact where the guide's means are, for a Gaussian posterior whatever its correlations,
    and first order elsewhere: it cannot repair means or shapes. The ELBO and the expectations
    are averages over the same draws, Sobol points where the guide's noise is Gaussian. It takes
    one backward pass for each parameter of the guide, and for P of them memory for P² numbers.
    Parameters of the model are held fixed.

    Args:
        model: a Pyro model.
        guide: a guide, fitted with the ELBO, whose draws are reparameterized.
        args: positional arguments of both.
        num_samples: how many draws.
        seed: of the draws.
        kwargs: keyword arguments of both.

    Returns:
        Over every element of the model's latent and deterministic sites, `parameter` ("z[0]"):
        `mean` and `guide_sd` of the guide, `sd` by linear response, and `covariance` over
        (parameter, parameter_2); in the sites' own units.

    Raises:
        ValueError: a latent that is not reparameterized; a guide without parameters; a guide at
            which the ELBO has no maximum.

    Warns:
        UserWarning: the guide is far from its optimum.

    References:
        Giordano, Broderick and Jordan (2018), Covariances, robustness, and variational Bayes, JMLR
        19(51); Giordano, Ingram and Broderick (2024), Black box variational inference with a
        deterministic objective, JMLR 25(18), for fixed draws.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> precision = torch.tensor([[1.0, 0.9], [0.9, 1.0]]).inverse()
        >>> def model():
        ...     prior = dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision)
        ...     pyro.sample("z", prior)
        >>> def guide():  # the mean-field optimum
        ...     scale = pyro.param("scale", precision.diagonal() ** -0.5)
        ...     pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2)), scale).to_event(1))
        >>> found = linear_response(model, guide)
        >>> found["guide_sd"].values.round(2), found["sd"].values.round(2)
        (array([0.44, 0.44], dtype=float32), array([1., 1.]))
        >>> found["covariance"].values[0].round(2)
        array([1. , 0.9])
    """
    check_programs(model=model, guide=guide)
    check_count("num_samples", num_samples, least=2)
    forget_namesakes(guide)
    pair = Pair(model, guide, args, kwargs)
    with seeded(seed):
        structure = pair.once(probe).structure
        _check_reparameterized(structure)
        leaves = _parameters(pair)
        sobol = _sobol(pair, structure)
    with seeded(seed), poutine.block():
        drawn = guide_draws(pair, num_samples, sobol)
    loss = (drawn.log_density("guide") - drawn.log_density("model")).mean()
    labels, values = _sites(drawn)
    gradient = _flat_gradient(loss, leaves, create_graph=True)
    hessian = _rows(gradient, leaves)
    factor = _factor((hessian + hessian.T) / 2, list(leaves))
    response = _rows(values.mean(0), leaves)  # (parameter, η)
    half = np.linalg.solve(factor, response.T)
    covariance = half.T @ half
    sd = np.sqrt(covariance.diagonal())
    push = np.linalg.solve(factor, gradient.detach().cpu().double().numpy())
    _warn_if_far(half.T @ push, sd, labels)
    return xr.Dataset(
        {
            "mean": ("parameter", values.mean(0).detach().cpu().numpy()),
            "guide_sd": ("parameter", values.std(0).detach().cpu().numpy()),
            "sd": ("parameter", sd),
            "covariance": (("parameter", "parameter_2"), covariance),
        },
        coords={"parameter": labels, "parameter_2": labels},
    )


def _check_reparameterized(structure: Structure) -> None:
    for latent in structure.latents.values():
        if not latent.reparameterized:
            raise ValueError(
                f"linear response needs draws that are differentiable in the guide's parameters, "
                f"but those of latent '{latent.name}' ({latent.distribution}) are not. Sum a "
                "discrete latent out (infer={'enumerate': 'parallel'} in the model, none in the "
                "guide), or draw it from a reparameterized distribution."
            )


def _parameters(pair: Pair) -> dict[str, Tensor]:
    """Unconstrained parameters of the guide that have gradients, by name."""
    with torch.no_grad():
        found = inventory(lambda: pair.guide(*pair.args, **pair.kwargs), guide=pair.guide).leaves
    unique = {id(leaf): (name, leaf) for name, leaf in found.items()}  # some have two names
    leaves = {name: leaf for name, leaf in unique.values() if leaf.requires_grad}
    if not leaves:
        raise ValueError(
            "the guide has no parameter with a gradient (pyro.param), so none responds"
        )
    return leaves


def _sobol(pair: Pair, structure: Structure) -> Placement | None:
    try:
        gaussian = gaussian_latents(pair, structure)
    except ValueError:  # no Gaussian noise: plain draws
        return None
    return Placement(gaussian, frozenset(), frozenset())


def _sites(drawn: GuideDraws) -> tuple[list[str], Tensor]:
    """Labels and draws, (draw, parameter), of all elements of the sites with real values."""
    labels: list[str] = []
    columns = []
    for name in drawn.names:
        values = drawn.values(name)
        if values.is_floating_point():
            labels += element_names(name, values.shape[1:])
            columns.append(values.reshape(len(values), -1))
    return labels, torch.cat(columns, 1)


def _flat_gradient(
    scalar: Tensor, leaves: Mapping[str, Tensor], create_graph: bool = False
) -> Tensor:
    inputs: Sequence[Tensor] = list(leaves.values())
    if not scalar.requires_grad:
        return torch.cat([torch.zeros_like(x).reshape(-1) for x in inputs])
    found = torch.autograd.grad(
        scalar, inputs, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    parts = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
    return torch.cat([part.reshape(-1) for part in parts])


def _rows(vector: Tensor, leaves: Mapping[str, Tensor]) -> np.ndarray:
    """Derivative of every element in the parameters, (element, η), in float64."""
    rows = [_flat_gradient(element, leaves).detach().cpu().double() for element in vector]
    return torch.stack(rows).numpy()


def _factor(hessian: np.ndarray, names: list[str]) -> np.ndarray:
    """Lower Cholesky factor."""
    try:
        return np.linalg.cholesky(hessian)
    except np.linalg.LinAlgError:
        lowest = np.linalg.eigvalsh(hessian)[0] if np.isfinite(hessian).all() else math.nan
        raise ValueError(
            f"the ELBO has no maximum at the guide's parameters ({', '.join(names)}): the lowest "
            f"curvature of -ELBO is {lowest:.3g}, expected above 0. Fit the guide for longer, drop "
            "parameters that do nothing, or raise num_samples."
        ) from None


def _warn_if_far(step: np.ndarray, sd: np.ndarray, labels: list[str]) -> None:
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = np.nan_to_num(np.abs(step) / sd)
    worst = int(moved.argmax())
    if moved[worst] > _FAR:
        warn(
            f"the guide is not at its optimum: a Newton step would move the mean of "
            f"{labels[worst]} by {moved[worst]:.2f} sd. Linear response holds at the optimum; fit "
            "for longer."
        )
