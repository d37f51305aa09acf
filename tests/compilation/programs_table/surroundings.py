"""What stands around the program: handlers, contexts, hooks, gradients of others, the objective."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_elbo_lab.objectives.lower_bounds import StandardELBO
from tests.compilation.programs_table.arguments import gaussian, late
from tests.compilation.programs_table.latents import X, normal_z
from tests.compilation.programs_table.registry import Run, program


def model():
    gaussian(0.0)


def from_the_fifth(context):
    """A context around the fifth call and those after it."""

    def around(call) -> AbstractContextManager:
        return context() if late(call) else nullcontext()

    return around


@program("eager", reason="ScaleMessenger")
def scaled_from_outside():
    return Run(model, normal_z, around=from_the_fifth(lambda: poutine.scale(scale=0.5)))


@program("eager", reason="MaskMessenger")
def masked_from_outside():
    return Run(model, normal_z, around=lambda call: poutine.mask(mask=call % 2 == 0))


@program("captured")
def traced_from_outside():
    """As SVI does, to learn the parameters."""
    return Run(model, normal_z, around=lambda call: poutine.trace(param_only=True))


@program("either")
def autocast_from_outside():
    weights = torch.eye(4)

    def product():
        gaussian((weights @ X).float().sum())

    half = from_the_fifth(lambda: torch.autocast("cpu", torch.bfloat16))
    return Run(product, normal_z, around=half)


@program("either")
def no_grad_from_outside():
    return Run(model, normal_z, around=from_the_fifth(torch.no_grad))


@program("captured")
def hook_on_a_gradient():
    def each(call):
        if call == 4:
            pyro.param("z_loc").unconstrained().register_hook(lambda gradient: 0.1 * gradient)
        return ()

    return Run(model, normal_z, each=each)


@program("captured")
def hook_that_reads_a_norm():
    norms: list[float] = []
    hooked: list[Any] = []

    def each(call):
        if not hooked:
            leaf = pyro.param("z_loc", torch.zeros(())).unconstrained()
            hooked.append(leaf.register_hook(lambda gradient: norms.append(float(gradient))))
        return ()

    return Run(model, normal_z, each=each, state=lambda: {"norms": torch.tensor(norms)})


@program("either", reason="requires a gradient")
def weights_outside_of_the_store():
    """Their gradients are for an optimizer of the user's own."""
    net = nn.Linear(1, 1)

    def closed():
        gaussian(net(X[:1]).sum())

    def state():
        return {"gradient": net.weight.grad}

    return Run(closed, normal_z, state=state)


@program("either", reason="requires a gradient")
def argument_with_a_gradient():
    """The features come from a network that is trained outside."""
    net = nn.Linear(1, 1)

    def each(call):
        return (net(X[:1]).sum(),)

    def state():
        return {"gradient": net.weight.grad}

    return Run(lambda shift: gaussian(shift), normal_z, each=each, state=state)


@program("captured")
def parameter_frozen_later():
    def each(call):
        leaf = pyro.param("z_loc", torch.zeros(())).unconstrained()
        leaf.requires_grad_(call < 4)
        return ()

    return Run(model, normal_z, each=each)


@program("either")
def frozen_parameter_replaced():
    def each(call):
        pyro.get_param_store()["fixed"] = torch.tensor(1.0 + late(call))
        pyro.param("fixed").unconstrained().requires_grad_(False)
        return ()

    return Run(lambda: gaussian(pyro.param("fixed")), normal_z, each=each)


@program("captured", settled=False)
def parameters_local_to_modules():
    def own():
        gaussian(0.0)

    def around(call=0):
        return pyro.settings.context(module_local_params=True)

    with around():
        guide = AutoNormal(own)
        guide()

    def state():
        return {name: p.grad for name, p in guide.named_parameters()}

    return Run(own, guide, around=around, state=state)


@program("captured")
def weight_of_the_kl_terms_set_by_hand():
    objective = StandardELBO(kl_weight=0.1)

    def each(call):
        objective.kl_weight = 0.1 * (1 + late(call))
        return ()

    return Run(model, normal_z, objective, each=each)


@program("either", reason="average")
def decaying_average_of_the_cost():
    def coin(x):
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        p = pyro.param("p", torch.tensor(0.4))
        options = {"baseline": {"use_decaying_avg_baseline": True}}
        pyro.sample("b", dist.Bernoulli(p.sigmoid()), infer=options)

    return Run(coin, guide, args=(X[0],))


@program("captured")
def learnt_baseline():
    net = nn.Linear(1, 1)

    def coin(x):
        with pyro.plate("data", 4):
            b = pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        pyro.module("net", net)
        p = pyro.param("p", torch.full((4,), 0.4))
        options = {"nn_baseline": lambda x: net(x).squeeze(-1), "nn_baseline_input": x[:, None]}
        with pyro.plate("data", 4):
            pyro.sample("b", dist.Bernoulli(p.sigmoid()), infer={"baseline": options})

    return Run(coin, guide, args=(X,))
