"""Compiled fits: whole steps as one graph, and what `fit` keeps of them."""

import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from models import logistic_regression
from pyro_elbo_lab import (
    Fit,
    ImportanceWeightedELBO,
    StandardELBO,
    cyclical_annealing,
    default_optimizer,
    fit,
)
from pyro_elbo_lab.inference.fitting.steps import LEAST_STEPS
from tests.support.compilers import needs_compiler
from tests.support.tolerances import assert_means_equal

pytestmark = needs_compiler

X = torch.tensor([1.0, 2.0, 4.0])


def model(x: Tensor, scale: float = 1.0) -> None:
    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def guide(x: Tensor, scale: float = 1.0) -> None:
    loc = pyro.param("loc", x.new_zeros(()))
    spread = pyro.param("spread", x.new_ones(()), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(loc, spread))


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Every warning here is an unwanted fallback."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def train(compile: bool = True, num_steps: int = 40, **keywords: Any) -> Fit:
    pyro.clear_param_store()
    arguments = {"objective": StandardELBO(), "progress": False, "seed": 1, **keywords}
    args = () if "batches" in keywords else (X,)
    return fit(model, guide, *args, num_steps=num_steps, compile=compile, **arguments)


def same_stream(**keywords: Any) -> dict[str, Any]:
    """A callback makes steps be taken one by one, with the random numbers of an eager fit."""
    return {"callbacks": [lambda step, loss: False], **keywords}


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.05}),
    "ClippedAdam": lambda: default_optimizer(40),
    "AdamW": lambda: pyro.optim.AdamW({"lr": 0.05}),
    "SGD": lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.5}),
    "schedule": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.95}
    ),
    "outside: RMSprop": lambda: pyro.optim.RMSprop({"lr": 0.01}),
    "outside: on plateau": lambda: pyro.optim.ReduceLROnPlateau(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "patience": 3}
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_same_seed_same_curve(name: str) -> None:
    """To rounding, where noise is drawn site by site."""
    found = train(optimizer=OPTIMIZERS[name](), **same_stream())
    expected = train(compile=False, optimizer=OPTIMIZERS[name](), **same_stream())
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-4)
    for key, value in expected.parameters.items():
        torch.testing.assert_close(found.parameters[key], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            pyro.get_param_store()[key].unconstrained().detach(), value, rtol=1e-4, atol=1e-5
        )
    assert found.compilation.startswith("compiled loss" if "outside" in name else "compiled: ")
    assert expected.compilation.startswith("eager")


def test_blocks_end_where_eager_fits_end() -> None:
    """Other random numbers, the same posterior."""
    result = train(num_steps=3000, optimizer=default_optimizer(3000))
    assert result.losses.shape == (3000,) and np.isfinite(result.losses).all()
    assert pyro.param("loc").item() == pytest.approx(7 / 4, abs=0.01)
    assert pyro.param("spread").item() == pytest.approx(0.5, abs=0.01)
    assert 0 < result.compile_seconds < result.seconds


def test_curves_agree_in_distribution_over_seeds() -> None:
    """Losses early and late in 20 compiled and 20 eager fits, within standard errors."""
    curves = {
        compile: np.stack([train(compile, num_steps=150, seed=seed).losses for seed in range(20)])
        .reshape(20, 5, 30)
        .mean(-1)
        for compile in (True, False)
    }
    assert_means_equal(curves[True], curves[False])


def test_a_seed_fixes_the_losses() -> None:
    first, again, other = (train(seed=seed).losses for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_second_fit_goes_on() -> None:
    """Parameters, optimizer state and the schedule of the KL weight are those of one long fit."""
    keywords: dict[str, Any] = same_stream(seed=1)
    objective = StandardELBO(kl_weight=cyclical_annealing(10, 0.3))
    whole = train(num_steps=30, objective=objective, optimizer=OPTIMIZERS["schedule"](), **keywords)
    objective = StandardELBO(kl_weight=cyclical_annealing(10, 0.3))
    optimizer = OPTIMIZERS["schedule"]()
    train(num_steps=30, compile=False, objective=objective, optimizer=optimizer, **keywords)
    ends = dict(pyro.get_param_store().items())
    for name, value in ends.items():
        torch.testing.assert_close(
            whole.parameters[name], value.unconstrained().detach(), rtol=1e-4, atol=1e-5
        )
    assert objective.num_gradients == 30
    more = fit(
        model,
        guide,
        X,
        objective=objective,
        optimizer=optimizer,
        num_steps=5,
        compile=True,
        progress=False,
    )
    assert more.num_steps == 5 and objective.num_gradients == 35
    (rate,) = {scheduler.get_last_lr()[0] for scheduler in optimizer.optim_objs.values()}
    assert rate == pytest.approx(0.1 * 0.95**35)


def test_annealed_weights_reach_the_graph() -> None:
    def objective() -> Any:
        return ImportanceWeightedELBO(3, kl_weight=cyclical_annealing(10, 0.2))

    found = train(num_steps=25, objective=objective(), **same_stream())
    expected = train(False, num_steps=25, objective=objective(), **same_stream())
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-4)
    plain = train(num_steps=25, objective=ImportanceWeightedELBO(3), **same_stream())
    assert abs(plain.losses - found.losses).max() > 0.1


def test_averages_of_the_last_steps() -> None:
    seen: list[Tensor] = []
    keep = [lambda step, loss: seen.append(pyro.param("loc").detach().clone())]
    for compile in (True, False):
        seen.clear()
        result = train(compile, num_steps=20, average=0.25, callbacks=keep)
        torch.testing.assert_close(result.averaged["loc"], torch.stack(seen[-5:]).mean(0))
    blocks = train(num_steps=20, average=1.0)
    assert abs(blocks.averaged["loc"] - blocks.parameters["loc"]) > 1e-4
    blocks.restore(averaged=True)
    torch.testing.assert_close(pyro.param("loc").detach(), blocks.averaged["loc"])
    blocks.restore()
    torch.testing.assert_close(pyro.param("loc").detach(), blocks.parameters["loc"])


def test_no_averages_to_restore() -> None:
    with pytest.raises(ValueError, match="No averages"):
        train(num_steps=3).restore(averaged=True)


def test_callbacks_may_change_parameters() -> None:
    """As one does that keeps them within bounds."""

    def bounded(step: int, loss: float) -> bool:
        with torch.no_grad():
            pyro.param("loc").unconstrained().clamp_(max=0.05)
        return False

    losses = []
    for compile in (True, False):
        losses.append(train(compile, callbacks=[bounded]).losses)
        assert pyro.param("loc").item() == pytest.approx(0.05)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_callbacks_see_every_step_and_can_end_the_fit() -> None:
    for compile in (True, False):
        calls: list[tuple[int, float]] = []

        def watching(step: int, loss: float, calls: list[Any] = calls) -> bool:
            calls.append((step, loss))
            return step == 7

        result = train(compile, callbacks=[watching])
        assert [step for step, _ in calls] == list(range(1, 8))
        np.testing.assert_allclose(result.losses, [loss for _, loss in calls])


def test_batches_of_two_shapes() -> None:
    """7 rows in batches of 3, 3 and 1: two graphs, one set of parameters."""
    rows = TensorDataset(torch.linspace(0, 2, 7))
    found = train(num_steps=10, batches=DataLoader(rows, batch_size=3))
    expected = train(False, num_steps=10, batches=DataLoader(rows, batch_size=3))
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-4)


def test_batches_may_be_bare_tensors() -> None:
    found = train(num_steps=4, batches=[X, X + 1])
    expected = train(False, num_steps=4, batches=[X, X + 1])
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-4)


def test_batches_are_checked() -> None:
    with pytest.raises(ValueError, match="empty"):
        train(batches=[])
    with pytest.raises(ValueError, match="not from both"):
        fit(model, guide, X, objective=StandardELBO(), batches=[X])
    with pytest.raises(ValueError, match="share"):
        fit(model, guide, X, objective=StandardELBO(), average=1.5)


def test_plates_subsample_inside_the_graph() -> None:
    """The minibatches of a compiled fit are drawn anew at every step."""
    data = torch.arange(100.0) / 100

    def subsampling(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x), subsample_size=10) as rows:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    pyro.clear_param_store()
    result = fit(
        subsampling,
        guide,
        data,
        objective=StandardELBO(),
        num_steps=3000,
        compile=True,
        progress=False,
    )
    assert result.compilation.startswith("compiled: ")
    assert pyro.param("loc").item() == pytest.approx(49.5 / 101, abs=0.03)
    assert pyro.param("spread").item() == pytest.approx(101**-0.5, rel=0.1)


def test_nan_names_the_step_and_keeps_the_parameters() -> None:
    for keywords in ({}, same_stream()):
        pyro.clear_param_store()

        def falling(x: Tensor) -> None:
            loc = pyro.param("loc", x.new_full((), 0.5))
            pyro.sample("z", dist.Normal(loc, 1e-3))

        def rooted(x: Tensor) -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("f", -z.log())  # drives z across 0

        optimizer = pyro.optim.SGD({"lr": 0.02})
        with pytest.raises(FloatingPointError, match=r"NaN at step \d+; it was -?\d"):
            fit(
                rooted,
                falling,
                X,
                objective=StandardELBO(gradient="pathwise"),
                optimizer=optimizer,
                num_steps=4000,
                compile=True,
                progress=False,
                **keywords,
            )
        assert torch.isfinite(pyro.param("loc"))


def test_ctrl_c_returns_the_steps_so_far() -> None:
    def interrupt(step: int, loss: float) -> None:
        if step == 12:
            signal.raise_signal(signal.SIGINT)

    for compile in (True, False):
        before = signal.getsignal(signal.SIGINT)
        result = train(compile, callbacks=[interrupt])
        assert (result.num_steps, len(result.losses)) == (12, 12)
        assert signal.getsignal(signal.SIGINT) is before


def test_auto_compiles_long_fits_only() -> None:
    assert train("auto", num_steps=5).compilation == "eager: 5 steps are few"  # type: ignore[arg-type]
    some = train("auto", num_steps=LEAST_STEPS)  # type: ignore[arg-type]
    assert "too few to pay back" in some.compilation
    many = train("auto", num_steps=20_000)  # type: ignore[arg-type]
    assert many.compilation.startswith("compiled: whole steps as one graph")


def test_what_cannot_be_captured_runs_eagerly_and_says_why() -> None:
    def branching(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z if z > 0 else -z, 1.0).expand([3]).to_event(1), obs=x)

    pyro.clear_param_store()
    with pytest.warns(UserWarning, match=r"test_trainer.py, line \d+: pyro.sample\(\"x\""):
        result = fit(
            branching, guide, X, objective=StandardELBO(), num_steps=3, compile=True, progress=False
        )
    assert result.compilation.startswith("eager: a Python number or branch depends")
    assert np.isfinite(result.losses).all()


def test_save_and_load(tmp_path: Any) -> None:
    data = logistic_regression.data()
    auto = AutoNormal(logistic_regression.model)
    result = fit(
        logistic_regression.model,
        auto,
        *data,
        objective=StandardELBO(),
        num_steps=20,
        average=0.5,
        progress=False,
    )
    result.save(tmp_path / "fit.pt")
    pyro.clear_param_store()
    twin = AutoNormal(logistic_regression.model)
    loaded = Fit.load(
        tmp_path / "fit.pt", logistic_regression.model, twin, *data, objective=StandardELBO()
    )
    for name, value in auto.median(*data).items():
        torch.testing.assert_close(twin.median(*data)[name], value)
    np.testing.assert_array_equal(loaded.losses, result.losses)
    assert loaded.averaged.keys() == result.averaged.keys()
    assert loaded.posterior(10)["posterior"].sizes["draw"] == 10


def test_posterior_and_plot() -> None:
    result = train(num_steps=200, objective=Trace_ELBO())
    tree = result.posterior(50)
    assert tree["posterior"]["z"].sizes["draw"] == 50
    assert result.plot_loss().get_ylabel() == "loss (nats)"
