"""Mixture of Gaussians: the species of irises, found from their petals without labels.

    weights ~ Dirichlet(2, 2, 2),
    length_1 ~ Normal(-1, 1),  log(length_{c+1} - length_c) ~ Normal(0, 1),  c = 1, 2,
    width_c ~ Normal(0, 1),  log scale_cd ~ Normal(-1, 1),  c = 1..3,  d = 1, 2,
    species_n ~ Categorical(weights),
    x_n | species_n = c ~ Normal((length_c, width_c), diag(scale_c)),  n = 1..150.

The covariates are standardized. Which component bears which number means nothing to a mixture:
the posterior of one with exchangeable components has 3! equal modes. Here the mean petal lengths
increase with the component's number, which leaves one mode of these.

`model` marks the species for enumeration: the objective sums over them and a guide has none. In
`model_sampled` the guide draws them. `with_species` makes its guide from one of `model`: it draws
them from their exact conditional, so a guide has the same log-weights in both forms.

Given the continuous latents the species can be summed by hand: `log_density`.

Data: E. Anderson and R. A. Fisher (1936), The use of multiple measurements in taxonomic problems,
Annals of Eugenics 7; as scikit-learn ships them (`load_iris`).
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.ops.indexing import Vindex
from torch import Tensor

NUM_COMPONENTS = 3


def data() -> tuple[Tensor]:
    """Standardized length and width of the petals, shape (150, 2), of 150 flowers."""
    from sklearn.datasets import load_iris

    x = torch.as_tensor(load_iris().data[:, 2:])
    x = (x - x.mean(0)) / x.std(0, correction=0)
    return (x.to(torch.get_default_dtype()),)


def species() -> Tensor:
    """What the model is not told: 0 setosa, 1 versicolor, 2 virginica; shape (150,)."""
    from sklearn.datasets import load_iris

    return torch.as_tensor(load_iris().target)


def model(x: Tensor) -> None:
    """The species are summed out."""
    _mixture(x, {"enumerate": "parallel"})


def model_sampled(x: Tensor) -> None:
    """The species are drawn by the guide."""
    _mixture(x, {})


def _mixture(x: Tensor, infer: dict[str, str]) -> None:
    one, zero = x.new_ones(NUM_COMPONENTS), x.new_zeros(NUM_COMPONENTS)
    weights = pyro.sample("weights", dist.Dirichlet(2 * one))
    first = x.new_tensor([-1.0] + [0.0] * (NUM_COMPONENTS - 1))
    length = pyro.sample("length", _increasing(first, one))
    with pyro.plate("component", NUM_COMPONENTS):
        width = pyro.sample("width", dist.Normal(zero, one))
        scales = pyro.sample("scales", dist.LogNormal(x.new_full((2,), -1.0), 1.0).to_event(1))
    locs = centers(length, width)
    with pyro.plate("flower", len(x)):
        c = pyro.sample("species", dist.Categorical(weights), infer=infer)
        normal = dist.Normal(_of_component(locs, c), _of_component(scales, c))
        pyro.sample("x", normal.to_event(1), obs=x)


def _increasing(loc: Tensor, scale: Tensor) -> dist.TransformedDistribution:
    """The first entry and the logarithms of the steps between entries are Normal."""
    base = dist.Normal(loc, scale).to_event(1)
    return dist.TransformedDistribution(base, [dist.transforms.OrderedTransform()])


def centers(length: Tensor, width: Tensor) -> Tensor:
    """The components' means, (..., 3, 2).

    Args:
        length: shape (3,), or (..., 1, 3) where an outer plate stands to the left of "component".
        width: shape (3,), or (..., 3).
    """
    length = length.reshape(*length.shape[:-2], NUM_COMPONENTS)
    return torch.stack(torch.broadcast_tensors(length, width), -1)


def _of_component(values: Tensor, c: Tensor) -> Tensor:
    """Row c_n of (..., 3, 2), as (..., n, 2); the dimensions of "component" and "flower" are both
    -1, so that of the components moves out of the way."""
    return Vindex(values.unsqueeze(-3))[..., c, :]


def log_density(x: Tensor, weights: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
    """log p(x_n | weights, locs, scales) = log sum_c weights_c Normal(x_n; locs_c, scales_c).

    Args:
        x: shape (N, 2).
        weights: shape (..., 3).
        locs: shape (..., 3, 2), see `centers`.
        scales: shape (..., 3, 2).

    Returns:
        Shape (..., N), in nats.
    """
    return _log_joint(x, weights, locs, scales).logsumexp(-1)


def responsibilities(x: Tensor, weights: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
    """p(species_n = c | x_n, weights, locs, scales), (..., N, 3), from what `log_density` takes."""
    return _log_joint(x, weights, locs, scales).softmax(-1)


def _log_joint(x: Tensor, weights: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
    """log p(species_n = c, x_n | weights, locs, scales), (..., N, 3)."""
    normal = dist.Normal(locs.unsqueeze(-3), scales.unsqueeze(-3)).to_event(1)
    return weights.log().unsqueeze(-2) + normal.log_prob(x.unsqueeze(-2))


def parameters(values: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """weights (..., 3), locs (..., 3, 2) and scales (..., 3, 2) from values of the latents, which
    have a dimension of size 1 in place of the components where that is not their own."""
    weights = values["weights"]
    weights = weights.reshape(*weights.shape[:-2], NUM_COMPONENTS)
    return weights, centers(values["length"], values["width"]), values["scales"]


def with_species(guide: Callable[[Tensor], dict[str, Tensor]]) -> Callable[[Tensor], Any]:
    """From a guide of `model` that returns its draws, as autoguides do, one of `model_sampled`."""

    def guide_sampled(x: Tensor) -> None:
        share = responsibilities(x, *parameters(guide(x)))
        with pyro.plate("flower", len(x)):
            pyro.sample("species", dist.Categorical(share))

    return guide_sampled


_continuous = poutine.block(model, hide=["species"])
guides = {
    "continuous-normal": lambda: AutoNormal(_continuous),
    "continuous-mvn": lambda: AutoMultivariateNormal(_continuous),
}
