"""The training loop: what it reaches, what it returns, and what it leaves alone."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

from models import linear_regression
from pyro_elbo_lab.inference.fitting.fit import Fit, default_optimizer, fit
from pyro_elbo_lab.objectives.lower_bounds import ImportanceWeightedELBO, StandardELBO
from pyro_elbo_lab.programs.state import forget_namesakes, seeded


def model(x: Tensor) -> None:
    """Posterior Normal(x / 2, 1/sqrt 2), evidence Normal(0, sqrt 2)."""
    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", x.new_zeros(()))
    scale = pyro.param("scale", x.new_ones(()), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(loc, scale))


X = torch.tensor(3.0)


def train(guide: Callable[..., Any] = guide, num_steps: int = 30, **keywords: Any) -> Fit:
    keywords = {"objective": Trace_ELBO(), "progress": False, **keywords}
    return fit(model, guide, X, num_steps=num_steps, **keywords)


def test_reaches_the_exact_posterior() -> None:
    """Where the posterior is in the family, the estimator's noise vanishes at the optimum."""
    result = train(num_steps=1000, objective=StandardELBO())
    log_evidence = dist.Normal(0.0, 2**0.5).log_prob(X).item()
    assert result.losses[-1] == pytest.approx(-log_evidence, abs=1e-4)
    assert pyro.param("loc").item() == pytest.approx(1.5, abs=1e-2)
    assert pyro.param("scale").item() == pytest.approx(0.5**0.5, abs=1e-2)


def test_default_optimizer_converges_on_a_correlated_posterior() -> None:
    """The docstring states 0.01 to 0.27 nats over four seeds; a failed fit is nats away."""
    x, y = linear_regression.data()
    full_rank = AutoMultivariateNormal(linear_regression.model)
    objective = StandardELBO(10, vectorize_particles=True)
    fit(linear_regression.model, full_rank, x, y, objective=objective, progress=False)
    elbo = StandardELBO(num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        reached = -elbo.loss(linear_regression.model, full_rank, x, y)
    assert reached == pytest.approx(linear_regression.exact(x, y)["log_evidence"], abs=0.5)


def test_learning_rate_falls_a_hundredfold() -> None:
    optimizer = default_optimizer(50)
    train(num_steps=50, optimizer=optimizer)
    rates = {n: state["param_groups"][0]["lr"] for n, state in optimizer.get_state().items()}
    assert rates == pytest.approx({"loc": 0.0005, "scale": 0.0005})


def test_result() -> None:
    objective = Trace_ELBO()
    result = train(num_steps=7, objective=objective)
    assert result.losses.shape == (7,) and np.isfinite(result.losses).all()
    assert (result.num_steps, result.guide, result.objective) == (7, guide, objective)
    assert result.seconds > 0


def test_a_seed_fixes_the_losses() -> None:
    losses = []
    for seed in (1, 1, 2):
        pyro.clear_param_store()
        losses.append(train(seed=seed).losses)
    np.testing.assert_array_equal(losses[0], losses[1])
    assert (losses[0] != losses[2]).any()


def test_keyword_arguments_reach_model_and_guide() -> None:
    result = fit(model, guide, x=X, objective=Trace_ELBO(), num_steps=3, progress=False)
    assert result.num_steps == 3


def test_the_random_state_is_the_callers_again() -> None:
    def draws() -> tuple[float, float, float]:
        return torch.rand(()).item(), np.random.rand(), random.random()

    pyro.set_rng_seed(5)
    expected = draws()
    pyro.set_rng_seed(5)
    train()
    assert draws() == expected


def test_seeded_restores_the_random_state_after_an_error() -> None:
    pyro.set_rng_seed(5)
    expected = torch.rand(()), np.random.rand(), random.random()
    pyro.set_rng_seed(5)
    with pytest.raises(RuntimeError), seeded(1):
        torch.rand(3), np.random.rand(), random.random()
        raise RuntimeError
    assert (torch.rand(()), np.random.rand(), random.random()) == expected


def test_two_guides_of_one_class_are_fitted_separately() -> None:
    """Pyro alone lets the second start from, and go on changing, the parameters of the first."""
    first, second = AutoNormal(model), AutoNormal(model)
    losses = train(first, seed=1).losses
    before = {name: value.detach().clone() for name, value in first.named_parameters()}
    np.testing.assert_array_equal(train(second, seed=1).losses, losses)
    for name, value in second.named_parameters():
        assert value is not dict(first.named_parameters())[name]
    train(second, seed=2)
    for name, value in first.named_parameters():
        torch.testing.assert_close(value, before[name])


def test_a_guide_that_was_fitted_before_is_trained_further() -> None:
    automatic = AutoNormal(model)
    train(automatic, num_steps=500)
    assert train(automatic, num_steps=1).losses[0] < 4.0  # 9.3 at the first start


def test_param_statements_continue_and_other_parameters_stay() -> None:
    pyro.param("loc", torch.tensor(1.0))
    pyro.param("unrelated", torch.tensor(7.0))
    train(num_steps=1)
    assert pyro.param("loc").item() == pytest.approx(1.0, abs=0.06)
    assert pyro.param("unrelated").item() == 7.0


def test_the_guides_parameters_are_in_the_param_store() -> None:
    train(AutoNormal(model))
    assert {"AutoNormal.locs.z", "AutoNormal.scales.z"} <= set(pyro.get_param_store())


def test_forget_namesakes_knows_nested_modules() -> None:
    class Net(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)

        def forward(self) -> Tensor:
            return self.linear(torch.ones(2))

    first, second = Net(), Net()
    first()
    assert set(pyro.get_param_store()) == {"linear$$$weight", "linear$$$bias"}
    forget_namesakes(first)
    assert len(pyro.get_param_store()) == 2
    forget_namesakes(second)
    assert len(pyro.get_param_store()) == 0


def test_forget_namesakes_leaves_functions_and_unused_guides_alone() -> None:
    train(AutoNormal(model), num_steps=1)
    names = set(pyro.get_param_store())
    forget_namesakes(guide)
    forget_namesakes(AutoNormal(model))
    assert set(pyro.get_param_store()) == names


@pytest.mark.parametrize("step", [1, 4])
def test_nan_names_the_step(step: int) -> None:
    calls = iter(range(1, 100))

    class BreaksDown(Trace_ELBO):
        def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
            loss = super().loss_and_grads(model, guide, *args, **kwargs)
            return float("nan") if next(calls) == step else loss

    with pytest.raises(FloatingPointError, match=f"NaN at step {step};"):
        train(objective=BreaksDown())


@pytest.mark.parametrize("validated", [True, False])
def test_nan_in_the_data(validated: bool) -> None:
    with (
        pyro.validation_enabled(validated),
        pytest.raises(ValueError, match="Site 'x' observes 1 NaN among its 1 elements"),
    ):
        fit(model, guide, torch.tensor(torch.nan), objective=Trace_ELBO(), progress=False)


def test_ctrl_c_returns_the_steps_so_far() -> None:
    calls = iter(range(100))

    class Interrupted(Trace_ELBO):
        def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
            if next(calls) == 5:
                raise KeyboardInterrupt
            return super().loss_and_grads(model, guide, *args, **kwargs)

    result = train(objective=Interrupted())
    assert result.num_steps == 5 and result.losses.shape == (5,)


def test_what_no_objective_can_do_is_an_error_in_a_compiled_fit_too() -> None:
    def program() -> None:
        pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})

    with (
        pytest.warns(UserWarning, match="not compiled: .*'z' of the guide"),
        pytest.raises(NotImplementedError, match="'z' of the guide"),
    ):
        objective = ImportanceWeightedELBO(2)
        fit(program, program, objective=objective, num_steps=9, compile=True, progress=False)


def test_needs_a_step() -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 1 and an integer, got 0"):
        train(num_steps=0)


def test_mixed_dtypes_are_reported() -> None:
    def mixed(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.warns(UserWarning, match=r"'z' is torch.float32, 'x' is torch.float64"):
        fit(mixed, guide, X.double(), objective=Trace_ELBO(), num_steps=1, progress=False)


def test_follows_the_dtype_and_device_of_the_data(
    dtype: torch.dtype, device: torch.device, recwarn: pytest.WarningsRecorder
) -> None:
    x = X.to(device, dtype)
    automatic = AutoNormal(model)
    result = fit(model, automatic, x, objective=Trace_ELBO(), num_steps=20, progress=False)
    assert np.isfinite(result.losses).all()
    assert {(p.dtype, p.device.type) for p in automatic.parameters()} == {(dtype, device.type)}
    assert not recwarn.list


def test_progress_is_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    train(num_steps=100)
    assert capsys.readouterr().err == ""
    train(num_steps=100, progress=True)
    assert "SVI" in capsys.readouterr().err
