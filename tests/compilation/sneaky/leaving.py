"""Values that leave a program by Python, where the user of the program finds them."""

import collections
import types

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn

from tests.compilation.sneaky.registry import Case, X, gaussian, guide, sneaky

CHANGES = "which outlives the run"


def leaving(leave, see):
    """The guide hands its draw to somebody."""

    def own(*args):
        leave(guide().detach())

    return Case(lambda *args: gaussian(), own, seen=see)


@sneaky("eager", f"'guide.last', {CHANGES}")
def attribute_of_the_guide():
    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = None

        def forward(self):
            self.last = guide()

    own = Guide()
    return Case(gaussian, own, seen=lambda: own.last.detach())


@sneaky("eager", f"'model._last', {CHANGES}")
def private_attribute_of_a_pyro_module():
    class Model(PyroModule):
        def forward(self):
            self._last = gaussian()

    own = Model()
    return Case(own, guide, seen=lambda: own._last.detach())


@sneaky("eager", f"'guide.last', {CHANGES}")
def attribute_of_an_autoguide():
    class Guide(AutoNormal):
        def forward(self, *args, **kwargs):
            self.last = super().forward(*args, **kwargs)["z"]

    own = Guide(gaussian)
    return Case(gaussian, own, seen=lambda: own.last.detach())


@sneaky("eager", CHANGES)
def list_of_values():
    values = []
    return leaving(values.append, lambda: values[-1])


@sneaky("eager", CHANGES)
def dictionary_of_values():
    values = {}
    return leaving(lambda z: values.update(z=z), lambda: values["z"])


@sneaky("eager", CHANGES)
def deque_of_the_last_values():
    values = collections.deque(maxlen=2)
    return leaving(values.append, lambda: values[-1])


@sneaky("eager", CHANGES)
def namespace():
    space = types.SimpleNamespace(z=None)
    return leaving(lambda z: setattr(space, "z", z), lambda: space.z)


@sneaky("eager", CHANGES)
def attribute_of_a_class():
    class Log:
        z = None

    return leaving(lambda z: setattr(Log, "z", z), lambda: Log.z)


@sneaky("eager", CHANGES)
def attribute_of_a_function():
    def own():
        own.last = guide().detach()

    return Case(gaussian, own, seen=lambda: own.last)


LAST = None


@sneaky("eager", CHANGES)
def global_name():
    def own():
        global LAST
        LAST = guide().detach()

    return Case(gaussian, own, seen=lambda: LAST)


@sneaky("eager", CHANGES)
def name_of_an_outer_function():
    last = None

    def own():
        nonlocal last
        last = guide().detach()

    return Case(gaussian, own, seen=lambda: last)


@sneaky("eager", CHANGES)
def distribution_of_the_guide():
    holder = {}

    def own():
        loc = pyro.param("loc", torch.tensor(0.2))
        holder["q"] = dist.Normal(loc, 0.5)
        pyro.sample("z", holder["q"])

    return Case(gaussian, own, seen=lambda: holder["q"].loc.detach().clone())


@sneaky("eager", f"'guide.trace', {CHANGES}")
def trace_of_the_guide():
    traced = poutine.trace(guide)
    return Case(gaussian, traced, seen=lambda: traced.trace.nodes["z"]["value"].detach())


@sneaky("eager", CHANGES)
def trace_of_the_model():
    traced = poutine.trace(gaussian)
    return Case(traced, guide, seen=lambda: traced.trace.nodes["z"]["value"].detach())


@sneaky("eager", CHANGES)
def trace_within_the_guide():
    tracer = poutine.trace()

    def own():
        with tracer:
            guide()

    return Case(gaussian, own, seen=lambda: tracer.trace.nodes["z"]["value"].detach())


@sneaky("eager", CHANGES)
def entry_of_an_argument():
    batch = {"x": X}

    def own(batch):
        batch["z"] = guide().detach()

    return Case(lambda batch: gaussian(x=batch["x"]), own, (batch,), seen=lambda: batch["z"])


@sneaky("eager", "it keeps an argument in 'model.batch'")
def argument_that_is_kept():
    class Model(nn.Module):
        def forward(self, x):
            self.batch = x
            gaussian(x=x)

    own = Model()
    return Case(own, guide, (X,), seen=lambda: own.batch)


@sneaky("eager", CHANGES)
def attribute_of_the_objective():
    class Logging(Trace_ELBO):
        last = None

        def differentiable_loss(self, *args, **kwargs):
            loss = super().differentiable_loss(*args, **kwargs)
            self.last = loss.detach()
            return loss

    return Case(gaussian, guide, objective=Logging())


@sneaky("eager", CHANGES)
def set_of_names():
    seen, calls = set(), [0]

    def own():
        calls[0] += 1
        seen.add(calls[0])
        guide()

    return Case(gaussian, own)
