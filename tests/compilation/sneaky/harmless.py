"""Programs that look sneaky and are not: they stay captured, without a word."""

import contextlib
import enum
import functools
import itertools
import logging
import types
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from models import (
    ar,
    eight_schools,
    funnel,
    gaussian_process,
    horseshoe,
    linear_regression,
    logistic_regression,
    matrix_factorization,
    robust_regression,
)
from tests.compilation.sneaky.registry import Case, X, gaussian, guide, reading, sneaky

harmless = sneaky("captured")


@harmless
def loop_that_counts_in_the_same_object():
    """Bound to an object whose other attributes change at every step."""

    class Trainer:
        def __init__(self):
            self.sd, self.steps, self.losses = 1.0, 0, []

        def model(self):
            gaussian(0.0, self.sd)

    trainer = Trainer()

    def change():
        trainer.steps += 1
        trainer.losses.append(0.5)

    return Case(trainer.model, guide, change=change)


STEP = 0


@harmless
def loop_that_counts_in_a_global():
    settings = types.SimpleNamespace(STEP=1.0)

    def change():
        global STEP
        STEP += 1

    return reading(lambda: settings.STEP, change)


@harmless
def equal_number_put_in_place():
    settings = {"sd": 1000.5}
    return reading(lambda: settings["sd"] / 1000, lambda: settings.update(sd=float("1000.5")))


@harmless
def equal_objects_put_in_place():
    holder = {"noise": types.SimpleNamespace(sds=[1.0, 2.0])}
    return reading(
        lambda: holder["noise"].sds[1],
        lambda: holder.update(noise=types.SimpleNamespace(sds=[1.0, 2.0])),
    )


@harmless
def cache_filled_at_the_first_run():
    cache = {}

    def read():
        if "sd" not in cache:
            cache["sd"] = torch.ones(4)
        return cache["sd"]

    return reading(read)


@harmless
def cached_function():
    @functools.lru_cache
    def read(n):
        return 1.0 + n

    return reading(lambda: read(1) * read(2))


@harmless
def attribute_made_at_the_first_run():
    class Model(nn.Module):
        weights = None

        def forward(self):
            if self.weights is None:
                self.weights = torch.ones(4)
            gaussian(self.weights)

    return Case(Model(), guide)


@harmless
def attribute_that_gets_the_same_number_at_every_run():
    class Model:
        def __call__(self):
            self.n = len(X)
            self.plate = pyro.plate("data", self.n, dim=-1)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with self.plate:
                pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    return Case(Model(), guide)


@harmless
def lists_and_objects_of_one_run():
    class Log:
        def __init__(self):
            self.values = []

    def model():
        log, total = Log(), {}
        log.values.append(gaussian())
        log.last = log.values[-1]
        total["z"] = log.last
        counter = itertools.count()
        pyro.factor("more", -0.1 * total["z"] ** 2 * (1 + next(counter)))

    return Case(model, guide)


@harmless
def generator_of_one_run():
    def numbers():
        yield from (0.5, 0.25)

    return reading(lambda: 1.0 + sum(x for x in numbers()))


@harmless
def function_made_in_every_run():
    def read():
        scale = 2.0

        def inner(x):
            return scale * x

        return functools.reduce(lambda a, b: a * b, map(inner, (0.5, 0.8)))

    return reading(read)


@harmless
def logger():
    log = logging.getLogger("sneaky")

    def read():
        log.debug("the noise is read")
        return 1.0

    return reading(read)


@harmless
def handlers_and_contexts_of_one_run():
    @contextlib.contextmanager
    def narrow():
        yield 0.5

    def model():
        with narrow() as sd, poutine.scale(scale=0.5):
            gaussian(0.0, sd)

    return Case(model, guide)


@harmless
def constants_of_every_kind():
    class Kind(enum.Enum):
        NARROW = 1

    @dataclass
    class Config:
        kind: Kind = Kind.NARROW
        sds: tuple = (1.0, 2.0)

    config, table, array = Config(), {"a": [1.0], "b": {2.0}}, np.ones(3)
    return reading(lambda: config.sds[0] * table["a"][0] * float(array[0]) * config.kind.value)


@harmless
def large_structure_that_is_not_read():
    holder = types.SimpleNamespace(sd=1.0, rows=[[i] for i in range(150_000)])
    return reading(lambda: holder.sd)


@harmless
def network_with_dropout_and_hooks():
    net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.3), nn.Tanh(), nn.Linear(4, 1))
    net[0].register_forward_hook(lambda module, args, out: 2 * out)

    def model():
        pyro.module("net", net)
        gaussian(net(X[:1]).sum())

    return Case(model, guide)


@harmless
def pyro_module_with_priors():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.z = PyroSample(dist.Normal(0.0, 1.0))
            self.sd = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

        def forward(self):
            pyro.sample("x", dist.Normal(self.z, self.sd).expand([4]).to_event(1), obs=X)

    model = Model()
    return Case(model, AutoNormal(model))


@harmless
def autoguide_with_plates():
    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    return Case(model, AutoNormal(model))


@harmless
def list_of_autoguides():
    def model():
        pyro.sample("w", dist.Normal(0.0, 1.0))
        gaussian()

    parts = AutoGuideList(model)
    parts.append(AutoNormal(poutine.block(model, expose=["w"])))
    parts.append(AutoDelta(poutine.block(model, expose=["z"])))
    return Case(model, parts)


@harmless
def tensors_written_between_calls():
    x = X.clone()
    return Case(lambda: gaussian(x=x), guide, change=lambda: x.mul_(2.0))


@harmless
def argument_written_between_calls():
    x = X.clone()
    return Case(lambda x: gaussian(x=x), guide, (x,), change=lambda: x.mul_(2.0))


def _enter(module, auto=AutoNormal):
    def build():
        return Case(module.model, auto(module.model, init_scale=0.1), tuple(module.data()))

    build.__name__ = f"{module.__name__.rpartition('.')[2]}_with_{auto.__name__}"
    harmless(build)


for _module in (
    ar, eight_schools, funnel, gaussian_process, horseshoe, linear_regression,
    logistic_regression, matrix_factorization, robust_regression,
):  # fmt: skip
    _enter(_module)
_enter(eight_schools, AutoMultivariateNormal)
