"""Models whose objectives can be integrated exactly, with guides that do not hold the posterior.

Each toy states its model, its guide, its parameters and its `nodes`: all draws of K x M particles
with their probabilities, by Gauss-Hermite quadrature over the guide's noise and by enumeration of
discrete draws. What is expected of an objective is a function of these nodes, see `exact`.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor


@dataclass(frozen=True)
class Nodes:
    """N weighted joint draws of K inner and M outer particles.

    Attributes:
        weight: the probability of every draw, (cells, N), or (1, N) where it is that of all cells.
        shared: log p - log q of the factors that are outside of cells, (M, N).
        log_p: of the model's factors in the cells, (cells, K, M, N).
        log_q: of the guide's factors in the cells, (cells, K, M, N).

    The noise of different cells is one and the same, which is right for sums over cells.
    """

    weight: Tensor
    shared: Tensor
    log_p: Tensor
    log_q: Tensor


@dataclass(frozen=True)
class Toy:
    """A model and guide over parameters in the store.

    Attributes:
        parameters: the values at which everything is evaluated; "theta" is the model's.
        nodes: (K, M, fixed) -> nodes, differentiable in the parameters, through the draws as well
            unless these are fixed.
    """

    model: Callable[[], Any]
    guide: Callable[[], Any]
    parameters: dict[str, Tensor]
    nodes: Callable[[int, int, bool], Nodes]

    def gradient(self, scalar: Tensor) -> dict[str, Tensor]:
        """Of a function of the nodes in all parameters, flat."""
        leaves = list(self.parameters.values())
        grads = torch.autograd.grad(scalar, leaves, allow_unused=True)
        return {
            name: (torch.zeros_like(p) if g is None else g).reshape(-1)
            for (name, p), g in zip(self.parameters.items(), grads, strict=True)
        }


def parameter(toy_parameters: dict[str, Tensor], name: str) -> Tensor:
    """The parameter in the store, which starts at the toy's value."""
    return pyro.param(name, toy_parameters[name].detach().clone())


NODES = {1: 70, 2: 70, 3: 70, 4: 24, 6: 11}
"""By the number of dimensions, the number of nodes in each."""

_points: list[int] = []  # of a Sobol net; empty for Gauss-Hermite


@contextmanager
def quasi_random(num_points: int = 2**18) -> Iterator[None]:
    """Nodes from a Sobol net, for expectations of what is not smooth."""
    _points.append(num_points)
    try:
        yield
    finally:
        _points.pop()


def normal(num_dims: int, like: Tensor) -> tuple[list[Tensor], Tensor]:
    """Nodes (one tensor per dimension) and weights for expectations over N(0, I)."""
    if _points:
        net = torch.quasirandom.SobolEngine(num_dims, scramble=True, seed=0)
        uniform = net.draw(_points[-1], dtype=torch.float64).to(like)
        return list(torch.special.ndtri(uniform).T), like.new_full(_points[-1:], 1 / _points[-1])
    x, w = np.polynomial.hermite_e.hermegauss(NODES[num_dims])
    nodes = torch.as_tensor(x, dtype=like.dtype, device=like.device)
    weights = torch.as_tensor(w / w.sum(), dtype=like.dtype, device=like.device)
    grids = torch.meshgrid([nodes] * num_dims, indexing="ij")
    weight = torch.stack(torch.meshgrid([weights] * num_dims, indexing="ij")).prod(0)
    return [g.reshape(-1) for g in grids], weight.reshape(-1)


def log_normal(x: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """log N(x | loc, scale^2)."""
    scale = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    return -0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


Pairs = list[list[tuple[Tensor, Tensor]]]  # [k][m] -> (log p, log q)


def stack_pairs(cells: list[Pairs]) -> tuple[Tensor, Tensor]:
    """log p and log q of all cells, each (cells, K, M, N)."""
    log_p, log_q = (
        torch.stack(
            [torch.stack([torch.stack([m[side] for m in k]) for k in cell]) for cell in cells]
        )
        for side in (0, 1)
    )
    return log_p, log_q


def held(value: Tensor, fixed: bool) -> Tensor:
    """The value, cut from the graph if fixed."""
    return value.detach() if fixed else value


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

    Scales and masks apply to the sites of the plate, on one side each. With `joint` the nodes have
    one cell for all latents.
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

    def nodes(num_inner: int, num_outer: int, fixed: bool) -> Nodes:
        p = parameters
        scale_g, scale_z = p["global_log_scale"].exp(), p["local_log_scale"].exp()
        num_globals = num_outer * (num_inner if joint else 1)
        noise, weight = normal(num_globals + num_inner * num_outer, x)
        g_noise, z_noise = noise[:num_globals], noise[num_globals:]

        def of_global(index: int) -> tuple[Tensor, Tensor, Tensor]:
            g = held(p["global_loc"] + scale_g * g_noise[index], fixed)
            return g, log_normal(g, p["theta"], 1.0), log_normal(g, p["global_loc"], scale_g)

        def of_cell(g: Tensor, index: int, i: int) -> tuple[Tensor, Tensor]:
            loc = p["local_loc"][i] + p["local_slope"] * g
            z = held(loc + scale_z * z_noise[index], fixed)
            on_p = model_scale * (1.0 if model_mask is None else float(model_mask[i]))
            on_q = guide_scale * (1.0 if guide_mask is None else float(guide_mask[i]))
            log_p = log_normal(z, g, 1.0) + log_normal(x[i], z, 0.7)
            return on_p * log_p, on_q * log_normal(z, loc, scale_z)

        def of_all(index: int) -> tuple[Tensor, Tensor]:
            assert num_data == 1, "joint weights are integrated for one element only"
            g, log_p, log_q = of_global(index)
            local_p, local_q = of_cell(g, index, 0)
            return log_p + local_p, log_q + local_q

        ks, ms = range(num_inner), range(num_outer)
        if joint:
            cells = [[[of_all(k * num_outer + m) for m in ms] for k in ks]]
            return Nodes(weight[None], weight.new_zeros(num_outer, 1), *stack_pairs(cells))
        of_globals = [of_global(m) for m in ms]
        cells = [
            [[of_cell(of_globals[m][0], k * num_outer + m, i) for m in ms] for k in ks]
            for i in range(num_data)
        ]
        shared = torch.stack([log_p - log_q for _, log_p, log_q in of_globals])
        return Nodes(weight[None], shared, *stack_pairs(cells))

    return Toy(model, guide, parameters, nodes)


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

    def nodes(num_inner: int, num_outer: int, fixed: bool) -> Nodes:
        num = num_inner * num_outer
        each = 1 if plate else 3
        states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=dtype)] * (num * each))
        states = states.reshape(-1, num, each).expand(-1, num, 3)  # one noise for every cell
        theta, logits = parameters["theta"], parameters["logits"]
        log_q = dist.Bernoulli(logits=logits).log_prob(states)
        log_p = dist.Bernoulli(prior).log_prob(states) + log_normal(x, theta * states, 1.0)
        if not plate:
            log_q, log_p = log_q.sum(-1, keepdim=True), log_p.sum(-1, keepdim=True)
        weight = held(log_q.sum(1).exp(), fixed)
        shape = (log_q.shape[-1], num_inner, num_outer, -1)
        log_p, log_q = (t.permute(2, 1, 0).reshape(shape) for t in (log_p, log_q))
        return Nodes(weight.T, weight.new_zeros(num_outer, 1), log_p, log_q)

    return Toy(model, guide, parameters, nodes)


def discrete_hierarchy(*, dtype: torch.dtype = torch.float64) -> Toy:
    """g ~ Bernoulli, z | g ~ Bernoulli in a plate of one element, x ~ N(theta z + g, 1)."""
    x = torch.tensor([0.8], dtype=dtype)
    prior = torch.tensor(0.3, dtype=dtype)
    parameters = {
        "theta": torch.tensor(1.2, dtype=dtype),
        "logit": torch.tensor(-0.5, dtype=dtype),
        "logits": torch.tensor([0.7, -0.4], dtype=dtype),
    }
    for value in parameters.values():
        value.requires_grad_()

    def model() -> None:
        g = pyro.sample("g", dist.Bernoulli(prior))
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Bernoulli(0.4 + 0.3 * g))
            theta = parameter(parameters, "theta")
            pyro.sample("x", dist.Normal(theta * z + g, x.new_ones(())), obs=x)

    def guide() -> None:
        g = pyro.sample("g", dist.Bernoulli(logits=parameter(parameters, "logit")))
        logits = parameter(parameters, "logits")
        with pyro.plate("data", 1):
            pyro.sample("z", dist.Bernoulli(logits=torch.where(g > 0.5, logits[1], logits[0])))

    def nodes(num_inner: int, num_outer: int, fixed: bool) -> Nodes:
        p = parameters
        num = num_outer * (1 + num_inner)
        states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=dtype)] * num).T
        g, z = states[:num_outer], states[num_outer:].reshape(num_inner, num_outer, -1)
        q_z = dist.Bernoulli(logits=torch.where(g > 0.5, p["logits"][1], p["logits"][0]))
        q_g = dist.Bernoulli(logits=p["logit"])
        shared = dist.Bernoulli(prior).log_prob(g) - q_g.log_prob(g)
        log_q = q_z.log_prob(z)
        log_p = dist.Bernoulli(0.4 + 0.3 * g).log_prob(z) + log_normal(x, p["theta"] * z + g, 1.0)
        weight = (q_g.log_prob(g).sum(0) + log_q.sum((0, 1))).exp()
        return Nodes(held(weight, fixed)[None], shared, log_p[None], log_q[None])

    return Toy(model, guide, parameters, nodes)


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

    def nodes(num_inner: int, num_outer: int, fixed: bool) -> Nodes:
        p = parameters
        num = num_inner * num_outer
        noise, weight = normal(2 * num, x)
        scale = p["log_scale"].exp()

        def of_particle(index: int, c: int, i: int) -> tuple[Tensor, Tensor, Tensor]:
            r = held(p["r_loc"][i] + scale * noise[2 * index], fixed)
            log_c = torch.nn.functional.logsigmoid((2 * c - 1) * p["slope"] * r)
            loc = p["z_loc"][c] + 0.3 * r
            z = held(loc + noise[2 * index + 1], fixed)
            log_p = (
                log_normal(r, 0.0, 1.0)
                + torch.nn.functional.logsigmoid((2 * c - 1) * r)
                + log_normal(z, p["theta"] * c, 1.0)
                + log_normal(x[i], z + r, 1.0)
            )
            log_q = log_normal(r, p["r_loc"][i], scale) + log_c + log_normal(z, loc, 1.0)
            return log_p, log_q, log_c

        def of_cell(i: int) -> list[Tensor]:
            """Weight, log p and log q of all values of c: (values * N), (particles, values * N)."""
            columns = []
            for values in itertools.product([0, 1], repeat=num):
                particles = [of_particle(index, c, i) for index, c in enumerate(values)]
                log_p, log_q, log_c = (torch.stack(t) for t in zip(*particles, strict=True))
                columns.append((held(weight * log_c.sum(0).exp(), fixed), log_p, log_q))
            return [torch.cat(column, -1) for column in zip(*columns, strict=True)]

        cells = [of_cell(i) for i in range(2 if local else 1)]
        weights, log_p, log_q = (torch.stack(column) for column in zip(*cells, strict=True))
        shape = (len(cells), num_inner, num_outer, -1)
        return Nodes(weights, x.new_zeros(num_outer, 1), log_p.reshape(shape), log_q.reshape(shape))

    return Toy(model, guide, parameters, nodes)


def local(
    *,
    dtype: torch.dtype = torch.float64,
    num_data: int = 3,
    subsample_size: int | None = None,
) -> Toy:
    """z_i ~ N(theta, 1), x_i ~ N(z_i, 0.7): latents of cells and none that they share."""
    x = torch.linspace(-1.0, 2.0, num_data, dtype=dtype)
    parameters = {
        "theta": torch.tensor(0.3, dtype=dtype),
        "loc": torch.linspace(0.5, -0.3, num_data, dtype=dtype),
        "log_scale": torch.tensor(-0.3, dtype=dtype),
    }
    for value in parameters.values():
        value.requires_grad_()
    one = x.new_ones(())

    def model() -> None:
        theta = parameter(parameters, "theta")
        with pyro.plate("data", num_data, subsample_size=subsample_size) as index:
            z = pyro.sample("z", dist.Normal(theta, one))
            pyro.sample("x", dist.Normal(z, 0.7 * one), obs=x[index])

    def guide() -> None:
        loc, log_scale = parameter(parameters, "loc"), parameter(parameters, "log_scale")
        with pyro.plate("data", num_data, subsample_size=subsample_size) as index:
            pyro.sample("z", dist.Normal(loc[index], log_scale.exp()))

    def nodes(num_inner: int, num_outer: int, fixed: bool) -> Nodes:
        p = parameters
        noise, weight = normal(num_inner * num_outer, x)
        scale = p["log_scale"].exp()

        def of_cell(index: int, i: int) -> tuple[Tensor, Tensor]:
            z = held(p["loc"][i] + scale * noise[index], fixed)
            log_p = log_normal(z, p["theta"], 1.0) + log_normal(x[i], z, 0.7)
            return log_p, log_normal(z, p["loc"][i], scale)

        ks, ms = range(num_inner), range(num_outer)
        cells = [[[of_cell(k * num_outer + m, i) for m in ms] for k in ks] for i in range(num_data)]
        return Nodes(weight[None], weight.new_zeros(num_outer, 1), *stack_pairs(cells))

    return Toy(model, guide, parameters, nodes)
