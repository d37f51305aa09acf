"""Models whose objectives can be integrated exactly, with guides that do not hold the posterior.

Each toy states its model, its guide, its parameters and `exact(num_particles)`: the expected
objective as a differentiable function of the parameters, by Gauss-Hermite quadrature over the
guide's noise and by enumeration of discrete draws.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor


@dataclass(frozen=True)
class Toy:
    """A model and guide over parameters in the store, and the exact objective."""

    model: Callable[[], Any]
    guide: Callable[[], Any]
    parameters: dict[str, Tensor]
    exact: Callable[[int], Tensor]

    def exact_gradient(self, num_particles: int) -> Tensor:
        """Gradient of the exact objective, all parameters side by side."""
        leaves = list(self.parameters.values())
        grads = torch.autograd.grad(self.exact(num_particles), leaves, allow_unused=True)
        pairs = zip(leaves, grads, strict=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in pairs]
        ).detach()


def parameter(toy_parameters: dict[str, Tensor], name: str) -> Tensor:
    """The parameter in the store, which starts at the toy's value."""
    return pyro.param(name, toy_parameters[name].detach().clone())


def normal(num_dims: int, num_nodes: int, like: Tensor) -> tuple[list[Tensor], Tensor]:
    """Nodes (one tensor per dimension) and weights for expectations over N(0, I)."""
    x, w = np.polynomial.hermite_e.hermegauss(num_nodes)
    nodes = torch.as_tensor(x, dtype=like.dtype, device=like.device)
    weights = torch.as_tensor(w / w.sum(), dtype=like.dtype, device=like.device)
    grids = torch.meshgrid([nodes] * num_dims, indexing="ij")
    weight = torch.stack(torch.meshgrid([weights] * num_dims, indexing="ij")).prod(0)
    return [g.reshape(-1) for g in grids], weight.reshape(-1)


def log_normal(x: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """log N(x | loc, scale^2)."""
    scale = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    return -0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def log_mean_exp(log_weights: list[Tensor]) -> Tensor:
    """The importance-weighted bound, written out again for the tests."""
    return torch.stack(log_weights).logsumexp(0) - math.log(len(log_weights))


def hierarchical(
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    num_data: int = 3,
    subsample_size: int | None = None,
    joint: bool = False,
    model_scale: float = 1.0,
    guide_scale: float = 1.0,
    model_mask: list[bool] | None = None,
    guide_mask: list[bool] | None = None,
) -> Toy:
    """g ~ N(theta, 1), z_i ~ N(g, 1), x_i ~ N(z_i, 0.7) with a guide q(g) q(z_i | g).

    Scales and masks apply to the sites of the plate, on one side each. With `joint` the exact
    objective has one weight for all latents.
    """

    def tensor(values: Any) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    x = torch.linspace(-1.0, 2.0, num_data, dtype=dtype, device=device)
    parameters = {
        "theta": tensor(0.3),
        "global_loc": tensor(-0.2),
        "global_log_scale": tensor(-0.4),
        "local_loc": torch.linspace(0.5, -0.3, num_data, dtype=dtype, device=device),
        "local_slope": tensor(0.4),
        "local_log_scale": tensor(-0.3),
    }
    for value in parameters.values():
        value.requires_grad_()

    def mask(values: list[bool] | None, index: Tensor) -> Tensor | bool:
        return True if values is None else torch.tensor(values, device=device)[index]

    def model() -> None:
        one = x.new_ones(())
        g = pyro.sample("g", dist.Normal(parameter(parameters, "theta"), one))
        with pyro.plate("data", num_data, subsample_size=subsample_size, device=device) as index:
            changed = poutine.scale(scale=model_scale), poutine.mask(mask=mask(model_mask, index))
            with changed[0], changed[1]:
                z = pyro.sample("z", dist.Normal(g, one))
                pyro.sample("x", dist.Normal(z, 0.7 * one), obs=x[index])

    def guide() -> None:
        p = {name: parameter(parameters, name) for name in parameters if name != "theta"}
        g = pyro.sample("g", dist.Normal(p["global_loc"], p["global_log_scale"].exp()))
        with pyro.plate("data", num_data, subsample_size=subsample_size, device=device) as index:
            loc = p["local_loc"][index] + p["local_slope"] * g
            changed = poutine.scale(scale=guide_scale), poutine.mask(mask=mask(guide_mask, index))
            with changed[0], changed[1]:
                pyro.sample("z", dist.Normal(loc, p["local_log_scale"].exp()))

    def exact(num_particles: int) -> Tensor:
        p = parameters
        scale_g, scale_z = p["global_log_scale"].exp(), p["local_log_scale"].exp()

        def global_term(g: Tensor) -> Tensor:
            return log_normal(g, p["theta"], 1.0) - log_normal(g, p["global_loc"], scale_g)

        def local_term(g: Tensor, noise: Tensor, i: int) -> Tensor:
            loc = p["local_loc"][i] + p["local_slope"] * g
            z = loc + scale_z * noise
            log_p = log_normal(z, g, 1.0) + log_normal(x[i], z, 0.7)
            log_q = log_normal(z, loc, scale_z)
            on_p = model_scale * (1.0 if model_mask is None else float(model_mask[i]))
            on_q = guide_scale * (1.0 if guide_mask is None else float(guide_mask[i]))
            return on_p * log_p - on_q * log_q

        if joint:
            assert num_data == 1
            nodes, weight = normal(2 * num_particles, 32, x)
            log_weights = []
            for k in range(num_particles):
                g = p["global_loc"] + scale_g * nodes[2 * k]
                log_weights.append(global_term(g) + local_term(g, nodes[2 * k + 1], 0))
            return (weight * log_mean_exp(log_weights)).sum()
        nodes, weight = normal(1 + num_particles, 70, x)
        g = p["global_loc"] + scale_g * nodes[0]
        total = global_term(g)
        for i in range(num_data):
            total = total + log_mean_exp([local_term(g, noise, i) for noise in nodes[1:]])
        return (weight * total).sum()

    return Toy(model, guide, parameters, exact)


def discrete(*, plate: bool, dtype: torch.dtype = torch.float64) -> Toy:
    """Three Bernoulli latents z_i with x_i ~ N(theta z_i, 1); with `plate` the weights are local,
    otherwise one weight holds them all."""
    x = torch.tensor([0.8, -0.4, 1.5], dtype=dtype)
    prior = torch.tensor(0.3, dtype=dtype)
    parameters = {
        "theta": torch.tensor(1.2, dtype=dtype),
        "logits": torch.tensor([0.4, -0.9, 0.1], dtype=dtype),
    }
    for value in parameters.values():
        value.requires_grad_()

    def model() -> None:
        theta = parameter(parameters, "theta")
        if plate:
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Bernoulli(prior))
                pyro.sample("x", dist.Normal(theta * z, x.new_ones(())), obs=x)
        else:
            z = pyro.sample("z", dist.Bernoulli(prior.expand(3)).to_event(1))
            pyro.sample("x", dist.Normal(theta * z, x.new_ones(3)).to_event(1), obs=x)

    def guide() -> None:
        q = dist.Bernoulli(logits=parameter(parameters, "logits"))
        if plate:
            with pyro.plate("data", 3):
                pyro.sample("z", q)
        else:
            pyro.sample("z", q.to_event(1))

    def exact(num_particles: int) -> Tensor:
        theta, logits = parameters["theta"], parameters["logits"]

        def log_weight_and_log_q(z: Tensor) -> tuple[Tensor, Tensor]:
            log_q = dist.Bernoulli(logits=logits).log_prob(z)
            log_p = dist.Bernoulli(prior).log_prob(z) + log_normal(x, theta * z, 1.0)
            return log_p - log_q, log_q

        if plate:
            total = x.new_zeros(())
            for values in itertools.product([0.0, 1.0], repeat=num_particles):
                pairs = [log_weight_and_log_q(x.new_full((3,), v)) for v in values]
                log_q = torch.stack([lq for _, lq in pairs]).sum(0)
                total = total + (log_q.exp() * log_mean_exp([lw for lw, _ in pairs])).sum()
            return total
        states = list(itertools.product([0.0, 1.0], repeat=3))
        pairs = [log_weight_and_log_q(x.new_tensor(s)) for s in states]
        sums = [(lw.sum(), lq.sum()) for lw, lq in pairs]
        total = x.new_zeros(())
        for combination in itertools.product(sums, repeat=num_particles):
            probability = torch.stack([lq for _, lq in combination]).sum().exp()
            total = total + probability * log_mean_exp([lw for lw, _ in combination])
        return total

    return Toy(model, guide, parameters, exact)


def mixed(*, local: bool, dtype: torch.dtype = torch.float64) -> Toy:
    """r ~ N(0, 1), c | r ~ Bernoulli, z | r, c ~ N: a discrete latent between two continuous
    ones, in model and guide; with `local` all three in a plate of two cells."""
    x = torch.tensor([0.7, -0.6], dtype=dtype)
    parameters = {
        "theta": torch.tensor(0.9, dtype=dtype),
        "r_loc": torch.tensor([0.2, -0.1], dtype=dtype),
        "slope": torch.tensor(0.8, dtype=dtype),
        "z_loc": torch.tensor([-0.5, 0.6], dtype=dtype),
        "log_scale": torch.tensor(-0.2, dtype=dtype),
    }
    for value in parameters.values():
        value.requires_grad_()
    one = x.new_ones(())

    def plate() -> Any:
        return pyro.plate("data", 2)

    def model() -> None:
        theta = parameter(parameters, "theta")

        def sites(observed: Tensor) -> None:
            r = pyro.sample("r", dist.Normal(0 * one, one))
            c = pyro.sample("c", dist.Bernoulli(logits=r))
            z = pyro.sample("z", dist.Normal(theta * c, one))
            pyro.sample("x", dist.Normal(z + r, one), obs=observed)

        if local:
            with plate():
                sites(x)
        else:
            sites(x[0])

    def guide() -> None:
        p = {name: parameter(parameters, name) for name in parameters if name != "theta"}

        def sites(r_loc: Tensor) -> None:
            r = pyro.sample("r", dist.Normal(r_loc, p["log_scale"].exp()))
            c = pyro.sample("c", dist.Bernoulli(logits=p["slope"] * r))
            loc = torch.where(c > 0.5, p["z_loc"][1], p["z_loc"][0]) + 0.3 * r
            pyro.sample("z", dist.Normal(loc, one))

        if local:
            with plate():
                sites(p["r_loc"])
        else:
            sites(p["r_loc"][0])

    def exact(num_particles: int) -> Tensor:
        p = parameters
        num_nodes = {1: 60, 2: 20}[num_particles]
        nodes, weight = normal(2 * num_particles, num_nodes, x)
        scale = p["log_scale"].exp()
        total = x.new_zeros(())
        for i in range(2 if local else 1):
            for values in itertools.product([0, 1], repeat=num_particles):
                log_weights, log_probability = [], x.new_zeros(())
                for k, c in enumerate(values):
                    r = p["r_loc"][i] + scale * nodes[2 * k]
                    log_c = torch.nn.functional.logsigmoid((2 * c - 1) * p["slope"] * r)
                    loc = p["z_loc"][c] + 0.3 * r
                    z = loc + nodes[2 * k + 1]
                    log_p = (
                        log_normal(r, 0.0, 1.0)
                        + torch.nn.functional.logsigmoid((2 * c - 1) * r)
                        + log_normal(z, p["theta"] * c, 1.0)
                        + log_normal(x[i], z + r, 1.0)
                    )
                    log_q = log_normal(r, p["r_loc"][i], scale) + log_c + log_normal(z, loc, 1.0)
                    log_weights.append(log_p - log_q)
                    log_probability = log_probability + log_c
                total = total + (weight * log_probability.exp() * log_mean_exp(log_weights)).sum()
        return total

    return Toy(model, guide, parameters, exact)
