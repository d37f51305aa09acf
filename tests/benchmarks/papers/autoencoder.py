"""Auto-encoders with one stochastic layer, and how Burda et al. (2016) trained them.

    z_n ~ Normal(0, I),  x_nd ~ Bernoulli(sigmoid(f_d(z_n))),

with f and the encoder perceptrons of tanh units. Li and Turner (2016) trained theirs likewise.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO
from pyro.optim import MultiStepLR
from torch import Tensor, nn

from pyro_elbo_lab import ImportanceWeightedELBO, StandardELBO, fit
from pyro_elbo_lab.inference.fitting.fit import Fit
from tests.benchmarks.papers.minibatches import Batches

LEARNING_RATE = 1e-3
_FEW = 100
NUM_RATES = 8
"""Stage i has the learning rate 0.001 * 10 ** (-i / 7), i = 0..7."""
ADAM_EPSILON = 1e-4

Program = Callable[[Tensor], None]
OBJECTIVES: dict[str, Callable[[int], ELBO]] = {
    "VAE": lambda k: StandardELBO(k, gradient="pathwise", vectorize_particles=k > 1),
    "IWAE": lambda k: ImportanceWeightedELBO(k, gradient="pathwise", vectorize_particles=k > 1),
}


class LogLikelihood(NamedTuple):
    """The mean over images of a lower bound of log p(x), in nats, and its standard error."""

    value: float
    se: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.se:.2f}"


class Network(NamedTuple):
    """Units of the hidden layers, from the pixels to the code; the decoder has them in reverse."""

    hidden: tuple[int, ...]
    num_latents: int


def auto_encoder(network: Network, pixel_means: Tensor) -> tuple[Program, Program]:
    """The model p(x, z) and the guide q(z | x), untrained.

    Args:
        network: its size.
        pixel_means: of the training images, (D,): where the biases of the last layer start.
    """
    sizes = (len(pixel_means), *network.hidden, network.num_latents)
    encoder = _perceptron(*sizes[:-1], 2 * network.num_latents).to(pixel_means.device)
    decoder = _perceptron(*reversed(sizes)).to(pixel_means.device)
    with torch.no_grad():
        list(decoder.parameters())[-1].copy_(torch.logit(pixel_means, eps=1e-3))

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("image", len(x)):
            prior = dist.Normal(x.new_zeros(network.num_latents), 1.0)
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("image", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def _perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers with tanh in between."""
    layers: list[nn.Module] = []
    for num_in, num_out in pairwise(sizes):
        layers += [nn.Tanh()] if layers else []
        layers.append(_linear(num_in, num_out))
    return nn.Sequential(*layers)


def _linear(num_in: int, num_out: int) -> nn.Linear:
    """Weights by Glorot and Bengio (2010), biases 0."""
    layer = nn.Linear(num_in, num_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def train(
    network: Network,
    objective: ELBO,
    batches: Batches,
    passes: list[int],
    seed: int = 0,
    epsilon: float = ADAM_EPSILON,
) -> tuple[Program, Program, Fit]:
    """Fit model and guide.

    Args:
        network: its size.
        objective: the loss.
        batches: of training images.
        passes: epochs with each of the eight learning rates.
        seed: of weights, order and draws.
        epsilon: Adam's.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model, guide = auto_encoder(network, batches.tensors[0].mean(0))
    milestones = len(batches) * np.cumsum(passes)
    adam = {"lr": LEARNING_RATE, "betas": (0.9, 0.999), "eps": epsilon}
    settings = {"optimizer": torch.optim.Adam, "optim_args": adam}
    schedule = {"milestones": milestones[:-1].tolist(), "gamma": 10 ** (-1 / (NUM_RATES - 1))}
    trained = fit(
        model, guide, objective=objective, optimizer=MultiStepLR(settings | schedule),
        num_steps=int(milestones[-1]), batches=batches, seed=seed, progress=False,
    )  # fmt: skip
    return model, guide, trained


def held_out_log_likelihood(
    model: Program, guide: Program, images: Tensor, num_particles: int
) -> LogLikelihood:
    """The importance-weighted bound of log p(x) with many particles, image by image.

    Args:
        model: trained.
        guide: its encoder.
        images: 0 or 1, (N, D).
        num_particles: 5000 in the papers.
    """
    values = _by_image(model, guide, images, num_particles)
    return LogLikelihood(float(np.mean(values)), float(np.std(values) / math.sqrt(len(values))))


def corrected_log_likelihood(
    model: Program, guide: Program, images: Tensor, num_particles: int, num_corrected: int
) -> LogLikelihood:
    """The same of all images, from few particles and what more of them add for some images.

    Args:
        model: trained.
        guide: its encoder.
        images: 0 or 1, (N, D).
        num_particles: 5000 in the papers.
        num_corrected: how many images, the first ones, are evaluated with so many.
    """
    cheap = _by_image(model, guide, images, _FEW)
    better = _by_image(model, guide, images[:num_corrected], num_particles)
    added = better - cheap[:num_corrected]
    value = float(np.mean(cheap) + np.mean(added))
    return LogLikelihood(
        value, math.hypot(*(np.std(x) / math.sqrt(len(x)) for x in (cheap, added)))
    )


def _by_image(model: Program, guide: Program, images: Tensor, num_particles: int) -> np.ndarray:
    bound = ImportanceWeightedELBO(num_particles, vectorize_particles=True)
    with torch.no_grad():
        return np.array([-bound.loss(model, guide, image[None]) for image in images])
