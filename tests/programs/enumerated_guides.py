"""Programs whose guides enumerate, in the shapes of those that people train with TraceEnum_ELBO.

Each is a function of no arguments that builds fresh parameters: (model, guide, args). The first
ones are semi-supervised autoencoders with small networks; the `series` are hidden Markov models
whose own states are summed out, beside a guide of the parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

Program = tuple[Callable[..., Any], Callable[..., Any], tuple]

_NUM_LABELS, _PIXELS, _STYLE, _ROWS = 3, 4, 2, 5


def _images() -> Tensor:
    return torch.bernoulli(torch.full((_ROWS, _PIXELS), 0.4, dtype=torch.float64))


def _labels() -> Tensor:
    codes = torch.arange(_ROWS) % _NUM_LABELS
    return torch.eye(_NUM_LABELS, dtype=torch.float64)[codes]


def _joined(*parts: Tensor) -> Tensor:
    """Concatenated along the last dimension, after the others are broadcast."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)


class LabeledImages(nn.Module):
    """Images of a label and a style; q(label | image) q(style | image, label)."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Linear(_PIXELS, _NUM_LABELS).double()
        self.style = nn.Linear(_PIXELS + _NUM_LABELS, 2 * _STYLE).double()
        self.decoder = nn.Linear(_STYLE + _NUM_LABELS, _PIXELS).double()

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("images", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(_STYLE), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(_NUM_LABELS)), obs=y)
            pixels = dist.Bernoulli(logits=self.decoder(_joined(z, y)))
            pyro.sample("x", pixels.to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("images", self)
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.label(x)))
            loc, scale = self.style(_joined(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(scale)).to_event(1))

    def classified(self, x: Tensor, y: Tensor) -> None:
        pyro.module("images", self)
        with pyro.plate("data", len(x)), poutine.scale(scale=40.0):
            pyro.sample("label", dist.OneHotCategorical(logits=self.label(x)), obs=y)


class LabeledCells(nn.Module):
    """Counts of a cell, whose label the guide draws given a continuous latent that it draws before,
    all scaled; labeled cells have a classification loss in the guide."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(_STYLE + _NUM_LABELS, 2 * _STYLE).double()
        self.rates = nn.Linear(_STYLE, _PIXELS).double()
        self.encoder = nn.Linear(_PIXELS, 2 * _STYLE + 2).double()
        self.label = nn.Linear(_STYLE, _NUM_LABELS).double()
        self.inner = nn.Linear(_STYLE + _NUM_LABELS, 2 * _STYLE).double()

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("cells", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=0.05):
            z1 = pyro.sample("z1", dist.Normal(x.new_zeros(_STYLE), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(_NUM_LABELS)), obs=y)
            loc, scale = self.decoder(_joined(z1, y)).chunk(2, -1)
            z2 = pyro.sample("z2", dist.Normal(loc, softplus(scale)).to_event(1))
            size = pyro.sample("l", dist.LogNormal(x.new_zeros(1), 0.5).to_event(1))
            rates = dist.Poisson(size * torch.softmax(self.rates(z2), -1))
            pyro.sample("x", rates.to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("cells", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=0.05):
            loc, scale, size, spread = self.encoder(x).split([_STYLE, _STYLE, 1, 1], -1)
            pyro.sample("l", dist.LogNormal(size, softplus(spread)).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(loc, softplus(scale)).to_event(1))
            labels = dist.OneHotCategorical(logits=self.label(z2))
            if y is None:
                y = pyro.sample("y", labels)
            else:
                pyro.factor("classification", -2 * labels.log_prob(y), has_rsample=False)
            loc, scale = self.inner(_joined(z2, y)).chunk(2, -1)
            pyro.sample("z1", dist.Normal(loc, softplus(scale)).to_event(1))


def images(how: str = "parallel", labeled: bool = False, auxiliary: bool = False) -> Program:
    """Semi-supervised autoencoder, the label enumerated; or its auxiliary loss."""
    module = LabeledImages()
    x, y = _images(), _labels()
    if auxiliary:
        return module.classified, lambda x, y: None, (x, y)
    guide = config_enumerate(module.guide, how, expand=True)
    return module.model, guide, (x, y) if labeled else (x,)


def cells(labeled: bool = False, how: str = "parallel") -> Program:
    """The label is drawn after a continuous latent, and before another."""
    module = LabeledCells()
    guide = config_enumerate(module.guide, how, expand=True)
    return module.model, guide, (_images(), _labels()) if labeled else (_images(),)


def chain_in_guide(history: int = 1) -> Program:
    """A Markov chain that model and guide have, the guide's with pyro.markov."""
    x = torch.randn(5, dtype=torch.float64)

    def steps(prefix: str, transition: Tensor, observe: Callable[[int, Tensor], None]) -> None:
        states = [torch.tensor(0), torch.tensor(0)]
        for t in pyro.markov(range(len(x)), history=history):
            probs = Vindex(transition)[states[-2] if history == 2 else 0, states[-1]]
            states.append(pyro.sample(f"s_{t}", dist.Categorical(probs)))
            observe(t, states[-1])

    def table(name: str) -> Tensor:
        start = torch.softmax(torch.randn(3, 3, 3, dtype=torch.float64), -1)
        return pyro.param(name, start, constraint=constraints.simplex)

    def model() -> None:
        loc = pyro.param("loc", torch.randn(3, dtype=torch.float64))
        transition = table("transition")

        def observe(t: int, state: Tensor) -> None:
            pyro.sample(f"x_{t}", dist.Normal(loc[state], 1.0), obs=x[t])

        steps("s", transition, observe)

    @config_enumerate
    def guide() -> None:
        steps("s", table("guide_transition"), lambda t, state: None)

    return model, guide, ()


def beside_the_models_own() -> Program:
    """The guide enumerates a, the model sums b out, given a; and z is drawn in between."""
    x = torch.randn(4, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)

    @config_enumerate
    def model() -> None:
        probs = pyro.param("probs", torch.softmax(torch.randn(2, 3, dtype=torch.float64), -1))
        a = pyro.sample("a", dist.Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)))
        z = pyro.sample("z", dist.Normal(a - 0.5 * one, one))
        with pyro.plate("data", 4):
            b = pyro.sample("b", dist.Categorical(Vindex(probs)[a]))
            pyro.sample("x", dist.Normal(z + b, one), obs=x)

    @config_enumerate
    def guide() -> None:
        logits = pyro.param("logits", torch.tensor([0.2, -0.3], dtype=torch.float64))
        loc = pyro.param("loc", torch.tensor([0.1, 0.9], dtype=torch.float64))
        a = pyro.sample("a", dist.Categorical(logits=logits))
        pyro.sample("z", dist.Normal(loc[a], 0.8))

    return model, guide, ()


def nested_plates(how: str = "parallel") -> Program:
    """a; b_i given a; c_ij given b_i, all enumerated."""
    x = torch.randn(2, 3, dtype=torch.float64)

    def three(prefix: str, sites: Callable[..., Tensor]) -> None:
        def coin(name: str, given: Tensor | None) -> Tensor:
            logits = pyro.param(prefix + name, torch.randn(2, dtype=torch.float64))
            return sites(name, logits[0] if given is None else Vindex(logits)[given.long()])

        a = coin("a", None)
        with pyro.plate("rows", 2, dim=-2):
            b = coin("b", a)
            with pyro.plate("columns", 3, dim=-1):
                c = coin("c", b)
                if prefix == "p_":
                    pyro.sample("x", dist.Normal(a + 2 * b - c, 1.0), obs=x)

    def sample(name: str, logits: Tensor) -> Tensor:
        return pyro.sample(name, dist.Bernoulli(logits=logits))

    return (
        lambda: three("p_", sample),
        config_enumerate(lambda: three("q_", sample), how),
        (),
    )


def series(kind: str) -> Program:
    """Hidden Markov models of two sequences of unequal length, states summed out of the model."""
    length, width, states = 4, 2, 2
    x = torch.bernoulli(torch.full((2, length, width), 0.5, dtype=torch.float64))
    lengths = torch.tensor([length, length - 1])

    def table(name: str, *shape: int) -> Tensor:
        concentration = torch.ones(states, dtype=torch.float64) + torch.eye(states)[0]
        prior = dist.Dirichlet(concentration).expand(list(shape)).to_event(len(shape))
        return pyro.sample(name, prior)

    def emission(*shape: int) -> Tensor:
        prior = dist.Beta(x.new_tensor(1.0), x.new_tensor(2.0))
        return pyro.sample("emission", prior.expand([*shape, width]).to_event(len(shape) + 1))

    def state(name: str, probs: Tensor) -> Tensor:
        return pyro.sample(name, dist.Categorical(probs), infer={"enumerate": "parallel"})

    def loops() -> None:  # a Python loop over sequences
        transition, probs = table("transition", states), emission(states)
        for i in pyro.plate("sequences", len(x)):
            z = torch.tensor(0)
            for t in pyro.markov(range(int(lengths[i]))):
                z = state(f"z_{i}_{t}", transition[z])
                pixels = dist.Bernoulli(probs[z]).to_event(1)
                pyro.sample(f"x_{i}_{t}", pixels, obs=x[i, t])

    def vectorized(order: int = 1, tones: bool = False) -> None:
        transition = table("transition", *[states] * order)
        probs = emission(*[states] * (2 if tones else 1))
        with pyro.plate("sequences", len(x), dim=-2):
            zs = [torch.tensor(0)] * order
            tone_plate = pyro.plate("tones", width, dim=-1)
            for t in pyro.markov(range(length), history=order):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    zs = [*zs[1:], state(f"z_{t}", Vindex(transition)[tuple(zs)])]
                    with tone_plate as tone:
                        before = x[:, t - 1].long() if t else torch.tensor(0)
                        index = (zs[-1], before, tone) if tones else (zs[-1], tone)
                        own = Vindex(probs)[index]
                        pyro.sample(f"x_{t}", dist.Bernoulli(own), obs=x[:, t])

    def factorial() -> None:  # two chains
        one, two = table("transition", states), table("transition_2", states)
        probs = emission(states, states)
        with pyro.plate("sequences", len(x), dim=-1):
            w, z = torch.tensor(0), torch.tensor(0)
            for t in pyro.markov(range(length)):
                with poutine.mask(mask=t < lengths):
                    w, z = state(f"w_{t}", one[w]), state(f"z_{t}", two[z])
                    pixels = dist.Bernoulli(Vindex(probs)[w, z]).to_event(1)
                    pyro.sample(f"x_{t}", pixels, obs=x[:, t])

    kinds: dict[str, Callable[[], None]] = {
        "loops": loops,
        "vectorized": vectorized,
        "tones": lambda: vectorized(tones=True),
        "second order": lambda: vectorized(order=2),
        "factorial": factorial,
    }
    model = kinds[kind]
    names = ["transition", "transition_2", "emission"]
    return model, AutoDelta(poutine.block(model, expose=names)), ()


SERIES = ("loops", "vectorized", "tones", "second order", "factorial")
PROGRAMS: dict[str, Callable[[], Program]] = {
    "images, parallel": images,
    "images, sequential": lambda: images("sequential"),
    "images, labeled": lambda: images(labeled=True),
    "images, auxiliary loss": lambda: images(auxiliary=True),
    "cells": cells,
    "cells, sequential": lambda: cells(how="sequential"),
    "cells, labeled": lambda: cells(labeled=True),
    "chain in the guide": chain_in_guide,
    "chain of order 2 in the guide": lambda: chain_in_guide(2),
    "beside the model's own": beside_the_models_own,
    "nested plates": nested_plates,
    "nested plates, sequential": lambda: nested_plates("sequential"),
    **{f"series, {kind}": partial(series, kind) for kind in SERIES},
}
