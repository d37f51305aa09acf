"""What captured programs hold: statistics of layers, parameters of modules, hooks, values read."""

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroParam
from pyro.optim import Adam
from torch import nn

from pyro_elbo_lab import StandardELBO, compiled, fit
from pyro_elbo_lab.compilation.capture.guard import CaptureError
from pyro_elbo_lab.compilation.captured import evaluate
from pyro_elbo_lab.programs.pair import Pair

X = torch.linspace(-1.0, 2.0, 12).reshape(4, 3).sin()
ROUNDING: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def network(**options):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, **options), nn.Linear(4, 1))


def regression(net):
    """Without a random number: compiled fits take the steps that eager fits take."""

    def model(x):
        pyro.module("net", net)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x).squeeze(-1) + mean, 1.0), obs=x.sum(-1).cos())

    return model, AutoDelta(model)


def fitted(net, compile, **options):
    """What a fit leaves: its losses, the parameters, the buffers; and how it ran."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = regression(net)
    batches = options.pop("batches", None)
    args = () if batches else (X,)
    result = fit(
        model,
        guide,
        *args,
        objective=StandardELBO(),
        optimizer=Adam({"lr": 0.01}),
        num_steps=12,
        compile=compile,
        progress=False,
        **({"batches": batches} if batches else {}),
        **options,
    )
    buffers = {name: x.clone() for name, x in net.named_buffers()}
    store = {name: x.detach().clone() for name, x in pyro.get_param_store().items()}
    return {"losses": torch.as_tensor(result.losses), **store, **buffers}, result.compilation


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("watched", [False, True])
def test_a_compiled_fit_leaves_the_statistics_of_an_eager_one(momentum, watched):
    options = {"callbacks": [lambda step, loss: None]} if watched else {}
    eager, _ = fitted(network(momentum=momentum), False, **options)
    found, note = fitted(network(momentum=momentum), True, **options)
    assert note.startswith("compiled: whole steps")
    assert int(found["1.num_batches_tracked"]) >= 12
    torch.testing.assert_close(found, eager, **ROUNDING)


def test_a_fit_on_batches_that_are_read_as_numbers():
    def model(x, lengths):
        scale = pyro.param("scale", torch.tensor(0.7))
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        for t in range(int(lengths.max())):
            with pyro.plate(f"data {t}", len(x)):
                pyro.sample(f"y{t}", dist.Normal(mean, scale.exp()), obs=x[:, t])

    batches = [(X, torch.tensor([1, n, 1, 1])) for n in (1, 3, 2, 3, 1, 2)]
    found = {}
    for compile in (False, True):
        pyro.clear_param_store()
        guide = AutoDelta(model)
        optimizer = Adam({"lr": 0.01})
        objective = StandardELBO()
        result = fit(
            model, guide, batches=batches, objective=objective, optimizer=optimizer, num_steps=12,
            compile=compile, progress=False,
        )  # fmt: skip
        found[compile] = {"losses": torch.as_tensor(result.losses), **result.parameters}
    assert result.compilation.startswith("compiled: whole steps")
    torch.testing.assert_close(found[True], found[False], **ROUNDING)


@pytest.mark.parametrize("after", [False, True])
def test_a_fit_with_a_hook_says_so_and_heeds_it(after):
    def forget(parameter):
        parameter.grad.zero_()

    def hooked_network():
        net = network()
        if after:
            net[2].weight.register_post_accumulate_grad_hook(forget)
        else:
            net[2].weight.register_hook(lambda gradient: 0 * gradient)
        return net

    net = hooked_network()
    before = net[2].weight.detach().clone()
    found, note = fitted(net, True)
    assert "hook on its gradient" in note
    assert note.startswith("compiled loss")
    torch.testing.assert_close(net[2].weight.detach(), before)
    eager, _ = fitted(hooked_network(), False)
    torch.testing.assert_close(found, eager, **ROUNDING)


@pytest.fixture
def local_parameters():
    with pyro.settings.context(module_local_params=True):
        yield


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(0.8), constraint=dist.constraints.positive)

    def forward(self, x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, self.scale), obs=x)


def svi_steps(wrap, num_steps=10):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model = Regression()
    guide = AutoNormal(model)
    guide(X[0])
    loss = wrap(StandardELBO(2))
    svi = SVI(model, guide, Adam({"lr": 0.05}), loss=loss)
    losses = [svi.step(X[0]) for _ in range(num_steps)]
    found = {
        name: x.detach().clone() for name, x in nn.ModuleList([model, guide]).named_parameters()
    }
    return {"losses": torch.tensor(losses), **found}, loss, (model, guide)


def test_local_parameters_are_captured_and_trained_by_svi(local_parameters):
    eager, *_ = svi_steps(lambda objective: objective)
    found, loss, programs = svi_steps(lambda objective: compiled(objective, "graph"))
    assert loss.status(*programs, X[0]) == "captured"
    assert not list(pyro.get_param_store())
    torch.testing.assert_close(found, eager, **ROUNDING)


def test_local_parameters_that_are_replaced_are_seen(local_parameters):
    _, loss, (model, guide) = svi_steps(lambda objective: compiled(objective, "graph"))
    model.scale = PyroParam(torch.tensor(3.0), constraint=dist.constraints.positive)
    pyro.set_rng_seed(5)
    found = loss.loss_and_grads(model, guide, X[0])
    pyro.set_rng_seed(5)
    assert found == pytest.approx(loss.objective.loss(model, guide, X[0]), rel=1e-5)
    assert model.scale_unconstrained.grad is not None


def test_a_local_parameter_that_no_program_holds_is_named(local_parameters):
    hidden = {"model": Regression()}
    calls = iter(range(10**6))

    class Elsewhere:
        __slots__ = ("__weakref__", "name")

        def __call__(self, x):
            next(calls)
            type(self).look_up()(x)

        @staticmethod
        def look_up():
            return eval("hidden['model']", {"hidden": hidden})

    model = Elsewhere()
    guide = AutoNormal(hidden["model"])
    guide(X[0])
    with pytest.raises(CaptureError, match="'scale' is neither in the param store nor in a module"):
        evaluate(StandardELBO(), Pair(model, guide, (X[0],)))


def test_a_capture_that_fails_leaves_all_as_it_was():
    net = network()
    seen: list[torch.Tensor] = []
    net[0].weight.register_hook(seen.append)

    def model(x):
        pyro.module("net", net)
        mean = pyro.sample("mean", dist.Normal(net(x).mean(), 1.0))
        sign = 1.0 if mean > 0 else -1.0
        pyro.factor("magnitude", -sign * mean)

    guide = AutoNormal(model)
    objective = StandardELBO()
    objective.loss(model, guide, X)
    store = {name: x.detach().clone() for name, x in pyro.get_param_store().items()}
    buffers = {name: x.clone() for name, x in net.named_buffers()}
    random = torch.get_rng_state()
    with pytest.raises(CaptureError, match=r"1\.0 if mean > 0"):
        evaluate(objective, Pair(model, guide, (X,)))
    torch.testing.assert_close(dict(net.named_buffers()), buffers, rtol=0, atol=0)
    now = {name: x.detach() for name, x in pyro.get_param_store().items()}
    torch.testing.assert_close(now, store, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert not seen
    assert len(net[0].weight._backward_hooks) == 1


def test_a_graph_is_dropped_and_made_again_only_for_values_that_are_new():
    def model(x):
        gap = 1.0 if x.sum() > 0 else -1.0
        mean = pyro.sample("mean", dist.Normal(gap, 1.0))
        pyro.sample("x", dist.Normal(mean, 1.0).expand(x.shape).to_event(2), obs=x)

    guide, loss = AutoNormal(model), compiled(StandardELBO(), "graph")
    for x in (X, -X, X, 2 * X, -3 * X):
        loss.loss_and_grads(model, guide, x)
    assert loss._history(model, guide).captured == 2


def test_known_values_stay_captured_when_others_are_too_many():
    def model(x, n):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean * n.item(), 1.0).expand(x.shape).to_event(2), obs=x)

    guide, loss = AutoNormal(model), compiled(StandardELBO(), "graph")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in range(8):
            loss.loss_and_grads(model, guide, X, torch.tensor(n))
    said = [str(w.message) for w in caught if "runs eagerly" in str(w.message)]
    assert len(said) == 1
    assert "n.item()" in said[0]
    assert loss.status(model, guide, X, torch.tensor(2)) == "captured"
    assert loss.status(model, guide, X, torch.tensor(6)).startswith("eager: 4 graphs")


def test_hooks_that_pyro_calls_for_every_particle_are_not_captured():
    def model():
        weight = pyro.param("weight", torch.tensor(2.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z * weight, 1.0), obs=torch.tensor(1.0))

    guide = AutoNormal(model)
    Trace_ELBO().loss(model, guide)
    pyro.param("weight").unconstrained().register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    with pytest.raises(CaptureError, match="'weight' has a hook on its gradient, and Trace_ELBO"):
        evaluate(Trace_ELBO(num_particles=2), Pair(model, guide))
