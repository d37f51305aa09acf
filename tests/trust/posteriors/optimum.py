"""Gaussian guides at their optimum: deterministic, and to more digits than training reaches.

The posterior mode in unconstrained space and the curvature there (Laplace's approximation) are the
start. From there BFGS maximizes the ELBO averaged over the same scrambled Sobol points at every
step, which is a smooth function of the guide's parameters (as in Giordano, Ingram and Broderick
2024, Black box variational inference with a deterministic objective, JMLR 25(18)).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal
from scipy import optimize
from torch import Tensor

from pyro_elbo_lab import StandardELBO
from pyro_elbo_lab.inference.nuts.potential import (
    isolated,
    logp_and_gradient,
    prepare,
    starting_point,
)
from pyro_elbo_lab.programs.state import forget_namesakes, seeded

Program = Callable[..., Any]

NUM_STARTS = 8
LARGEST_GRADIENT = 1e-4
"""In nats for one sd of the guide: at its optimum."""


def mean_field(model: Program, *args: Any, num_points: int = 4096, seed: int = 0) -> Any:
    """The `AutoDiagonalNormal` with the largest ELBO."""
    guide = _set_up(AutoDiagonalNormal(model), args)
    mode, precision = _laplace(model, args)
    _assign(guide, loc=mode, scale=precision.diagonal() ** -0.5)
    return _maximized(guide, model, args, num_points, seed)


def full_rank(model: Program, *args: Any, num_points: int = 4096, seed: int = 0) -> Any:
    """The `AutoMultivariateNormal` with the largest ELBO."""
    guide = _set_up(AutoMultivariateNormal(model), args)
    mode, precision = _laplace(model, args)
    factor = torch.linalg.cholesky(precision.inverse())
    scale = factor.diagonal()
    _assign(guide, loc=mode, scale=scale, scale_tril=factor / scale[:, None])
    return _maximized(guide, model, args, num_points, seed)


def _set_up(guide: Any, args: tuple) -> Any:
    with torch.no_grad(), pyro.get_param_store().scope():  # out of sight of other guides' values
        guide(*args)
    forget_namesakes(guide)
    return guide


def _assign(guide: Any, loc: Tensor, **constrained: Tensor) -> None:
    with torch.no_grad():
        guide.loc.copy_(loc)
        for name, value in constrained.items():
            setattr(guide, name, value.contiguous())


def _laplace(model: Program, args: tuple) -> tuple[Tensor, Tensor]:
    """The mode of the unconstrained posterior, shape (D,), and its precision there, (D, D)."""
    with seeded(0), isolated():
        potential = prepare(model, args, {})
        evaluate = logp_and_gradient(potential)

        def energy(x: np.ndarray) -> tuple[float, np.ndarray]:
            logp, gradient = evaluate(x)
            return -logp, -gradient

        starts = [starting_point(potential, seed) for seed in range(NUM_STARTS)]
        found = [optimize.minimize(energy, x, jac=True, method="BFGS") for x in starts]
        mode = torch.from_numpy(min(found, key=lambda result: result.fun).x)
        precision = torch.autograd.functional.hessian(
            lambda flat: potential.energy(potential.by_site(flat)), mode
        )
    return mode, precision


def _maximized(guide: Any, model: Program, args: tuple, num_points: int, seed: int) -> Any:
    """`guide`, its parameters where the ELBO is largest."""
    objective = StandardELBO(
        num_points, sampler="sobol", gradient="pathwise", vectorize_particles=True
    )
    parameters = list(guide.parameters())
    start = torch.nn.utils.parameters_to_vector(parameters).detach()
    # BFGS is told the scale of the parameters: of `loc` that is the guide's.
    unit = torch.cat([_unit(guide, p).reshape(-1) for p in parameters])

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        torch.nn.utils.vector_to_parameters(start + unit * torch.from_numpy(x), parameters)
        with seeded(seed):
            value = objective.differentiable_loss(model, guide, *args)
        gradients = torch.autograd.grad(value, parameters)
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        return value.item(), (unit * flat).numpy()

    best = optimize.minimize(loss, np.zeros(len(start)), jac=True, method="BFGS")
    if not abs(best.jac).max() < LARGEST_GRADIENT:
        raise RuntimeError(f"BFGS stopped at a gradient of {abs(best.jac).max():.2g} nats: {best}")
    loss(best.x)  # leaves the best parameters in the guide
    return guide


def _unit(guide: Any, parameter: Tensor) -> Tensor:
    is_loc = parameter is guide.loc
    return guide.scale.detach() if is_loc else torch.ones_like(parameter)
