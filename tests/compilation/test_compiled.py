"""Compiled objectives give what objectives give, whatever happens between the calls."""

import copy
import ctypes
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch import Tensor, nn
from torch.distributions import constraints

from models import eight_schools
from pyro_elbo_lab import (
    AnalyticKLELBO,
    ImportanceWeightedELBO,
    Objective,
    RenyiELBO,
    ReweightedWakeSleep,
    StandardELBO,
    ThermodynamicELBO,
    linear_annealing,
)
from pyro_elbo_lab import compiled as public
from pyro_elbo_lab.compilation.compiled_objective import (
    CHECK_EVERY,
    MOST_CHANGES,
    MOST_GRAPHS,
    CompiledELBO,
)
from tests.support.compilers import needs_compiler


def compiled(objective: Any) -> CompiledELBO:
    """Without inductor: what a graph is captured and trusted for does not depend on it."""
    return public(objective, backend="graph")


def model(x: Tensor, scale: float = 1.0) -> None:
    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def guide(x: Tensor, scale: float = 1.0) -> None:
    loc = pyro.param("loc", x.new_zeros(()))
    spread = pyro.param("spread", x.new_ones(()), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(loc, spread))


X = torch.tensor([1.0, 2.0, 4.0])

Call = Callable[[Any], list[float]]


def trained(loss: Any, steps: int = 6, program: Any = model, guide: Any = guide) -> list[float]:
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    svi = SVI(program, guide, Adam({"lr": 0.05}), loss=loss)
    return [svi.step(X) for _ in range(steps)]


OBJECTIVES: dict[str, Callable[[], Any]] = {
    "ELBO": StandardELBO,
    "ELBO, 4 particles": lambda: StandardELBO(4, vectorize_particles=True),
    "ELBO, score": lambda: StandardELBO(3, gradient="score"),
    "importance-weighted": lambda: ImportanceWeightedELBO(4, vectorize_particles=True),
    "Renyi": lambda: RenyiELBO(0.5, 4, vectorize_particles=True),
    "analytic KL": AnalyticKLELBO,
    "wake-sleep": lambda: ReweightedWakeSleep(4, vectorize_particles=True),
    "thermodynamic": lambda: ThermodynamicELBO(4, vectorize_particles=True),
    "Sobol": lambda: StandardELBO(4, vectorize_particles=True, sampler="sobol"),
    "annealed KL": lambda: StandardELBO(kl_weight=linear_annealing(5)),
    "minimum": lambda: Objective("Worst", lambda log_weights: log_weights.amin(0), num_inner=3),
    "Trace_ELBO": Trace_ELBO,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_trains_as_the_objective_does(name: str) -> None:
    loss = compiled(OBJECTIVES[name]())
    found = trained(loss)
    assert loss.status(model, guide, X) == "captured"
    np.testing.assert_allclose(found, trained(OBJECTIVES[name]()), rtol=1e-5)


@needs_compiler
def test_trains_as_the_objective_does_when_compiled_by_inductor() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = trained(public(StandardELBO()))
    np.testing.assert_allclose(found, trained(StandardELBO()), rtol=1e-5)


@needs_compiler
def test_eight_schools_to_rounding() -> None:
    data = eight_schools.data()
    curves = []
    for objective in (public(StandardELBO()), StandardELBO()):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        auto = AutoNormal(eight_schools.model, init_scale=0.1)
        svi = SVI(eight_schools.model, auto, Adam({"lr": 0.05}), loss=objective)
        curves.append([svi.step(*data) for _ in range(50)])
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)


def test_one_instance_serves_any_number_of_models() -> None:
    def wide(x: Tensor, scale: float = 1.0) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 9.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    loss = compiled(StandardELBO())
    for program in (model, wide, model, wide):
        assert trained(loss, 2, program) == trained(StandardELBO(), 2, program)


def test_new_shapes_and_python_arguments_get_graphs_of_their_own() -> None:
    """A bounded number of them is kept."""
    loss = compiled(StandardELBO())
    for n in (3, 5, 3, 7):
        for scale in (1.0, 2.0):
            x = torch.arange(float(n))
            torch.manual_seed(n)
            found = loss.loss_and_grads(model, guide, x, scale=scale)
            torch.manual_seed(n)
            assert found == pytest.approx(StandardELBO().loss_and_grads(model, guide, x, scale))
    for n in range(2, MOST_GRAPHS + 8):
        loss.loss_and_grads(model, guide, torch.arange(float(n)))
    (history,) = (x for guides in loss._histories.values() for x in guides.values())
    assert len(history.graphs) == MOST_GRAPHS


def test_minibatches_of_one_shape_share_a_graph() -> None:
    loss = compiled(StandardELBO())
    for i in range(5):
        x = X + i  # a new tensor, perhaps where the last one was
        torch.manual_seed(i)
        found = loss.loss_and_grads(model, guide, x)
        torch.manual_seed(i)
        assert found == pytest.approx(StandardELBO().loss_and_grads(model, guide, x))
    (history,) = (x for guides in loss._histories.values() for x in guides.values())
    assert history.captured == 1


def test_data_written_to_in_place_is_seen() -> None:
    loss, x = compiled(StandardELBO()), torch.linspace(0, 1, 100)
    for _ in range(3):
        torch.manual_seed(0)
        found = loss.loss_and_grads(model, guide, x)
        torch.manual_seed(0)
        assert found == pytest.approx(StandardELBO().loss_and_grads(model, guide, x))
        x += 1


def test_a_python_number_in_a_closure_gets_a_new_graph() -> None:
    settings = {"scale": 1.0}

    def closed(x: Tensor) -> None:
        model(x, settings["scale"])

    def outer(x: Tensor) -> None:
        guide(x)

    loss = compiled(StandardELBO())
    for scale in (1.0, 3.0, 1.0):
        settings["scale"] = scale
        torch.manual_seed(0)
        found = loss.loss_and_grads(closed, outer, X)
        torch.manual_seed(0)
        assert found == pytest.approx(StandardELBO().loss_and_grads(closed, outer, X))


def test_train_and_eval_are_two_graphs() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.dropout(z.expand(3)), 1.0), obs=x)

    def outer(x: Tensor) -> None:
        guide(x)

    program, loss = Model(), compiled(StandardELBO())
    for mode in (True, False, True):
        program.train(mode)
        torch.manual_seed(0)
        found = loss.loss_and_grads(program, outer, X)
        torch.manual_seed(0)
        assert found == pytest.approx(StandardELBO().loss_and_grads(program, outer, X))


def test_a_parameter_added_later_is_noticed() -> None:
    state = {"more": False}

    def growing(x: Tensor) -> None:
        guide(x)
        if state["more"]:
            pyro.param("unused", torch.zeros(2))

    loss = compiled(StandardELBO())
    loss.loss_and_grads(model, growing, X)
    state["more"] = True
    with poutine.trace(param_only=True) as seen:
        loss.loss_and_grads(model, growing, X)
    assert "unused" in seen.trace.nodes


def test_parameters_that_were_cleared_are_captured_anew() -> None:
    loss = compiled(StandardELBO())
    assert trained(loss) == trained(loss)


def test_gradients_accumulate() -> None:
    loss = compiled(StandardELBO())
    pyro.set_rng_seed(0)
    loss.loss_and_grads(model, guide, X)
    once = pyro.param("loc").unconstrained().grad.clone()
    pyro.set_rng_seed(0)
    loss.loss_and_grads(model, guide, X)
    torch.testing.assert_close(pyro.param("loc").unconstrained().grad, 2 * once)


def test_differentiable_loss_has_the_gradients() -> None:
    loss = compiled(StandardELBO())
    pyro.set_rng_seed(0)
    loss.loss_and_grads(model, guide, X)
    leaves = [pyro.param(name).unconstrained() for name in ("loc", "spread")]
    expected = [leaf.grad for leaf in leaves]
    pyro.set_rng_seed(0)
    value = loss.differentiable_loss(model, guide, X)
    found = torch.autograd.grad(value, leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert value.item() == pytest.approx(
        StandardELBO().loss(model, guide, X), abs=20
    )  # another draw


def test_handlers_around_the_call_see_the_parameters() -> None:
    loss = compiled(StandardELBO())
    with poutine.trace(param_only=True) as trace, poutine.block(hide=["spread"]):
        loss.loss_and_grads(model, guide, X)
    assert set(trace.trace.nodes) == {"loc"}


def test_the_random_state_moves_on_as_eagerly() -> None:
    after = []
    for loss in (compiled(StandardELBO()), StandardELBO()):
        torch.manual_seed(0)
        loss.loss_and_grads(model, guide, X)
        after.append((torch.rand(()), np.random.get_state()[1][0]))
    assert after[0] == after[1]


def test_pickling_drops_the_graphs_only() -> None:
    loss = compiled(ImportanceWeightedELBO(3))
    loss.loss_and_grads(model, guide, X)
    for twin in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert twin.objective.num_inner == 3
        assert np.isfinite(twin.loss_and_grads(model, guide, X))


def test_nan_is_an_error() -> None:
    loss = compiled(StandardELBO())
    loss.loss_and_grads(model, guide, X)
    with torch.no_grad():
        pyro.param("loc").unconstrained().fill_(np.nan)
    with pytest.raises(ValueError, match="NaN"):
        loss.loss_and_grads(model, guide, X)


def test_explain_says_that_it_is_a_graph() -> None:
    text = str(compiled(StandardELBO()).explain(model, guide, X))
    assert "runs: captured" in text and "doubly reparameterized" in text


def test_what_changes_out_of_sight_is_found_later() -> None:
    """A number in another library's C code, say: only the comparison with an eager run sees it."""

    def reading(x: Tensor) -> None:
        model(x, out_of_sight())

    def out_of_sight() -> float:
        return ctypes.c_float.from_address(address).value

    held = ctypes.c_float(1.0)
    address = ctypes.addressof(held)

    def outer(x: Tensor) -> None:
        guide(x)

    loss = compiled(StandardELBO())
    loss.loss_and_grads(reading, outer, X)
    held.value = 3.0
    with pytest.warns(UserWarning, match="call 2 the graph did not repeat an eager run"):
        found = loss.loss_and_grads(reading, outer, X)
    assert loss.status(reading, outer, X).startswith("eager: at call 2")
    assert np.isfinite(found) and CHECK_EVERY >= 2


def test_numbers_that_change_at_every_call_end_in_eager_runs() -> None:
    """After a few graphs, not after many."""
    loss = compiled(StandardELBO())
    with pytest.warns(UserWarning, match=r"no tensor \(5.0 by now\) has had 5 values"):
        for i in range(2 * MOST_CHANGES):
            scale = 1.0 + i
            torch.manual_seed(i)
            found = loss.loss_and_grads(model, guide, X, scale=scale)
            torch.manual_seed(i)
            assert found == pytest.approx(StandardELBO().loss_and_grads(model, guide, X, scale))


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend"):
        public(StandardELBO(), backend="llvm")  # type: ignore[arg-type]
