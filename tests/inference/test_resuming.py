"""Compiled fits and what the optimizer knows: state that was loaded, settings by parameter, changes
by callbacks. Each must be what an eager fit makes of it.

Graphs are run without being compiled, which takes less time and makes no difference here.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.infer.autoguide import AutoGuideList, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from pyro.optim import PyroOptim
from torch import Tensor
from torch.distributions import constraints

from pyro_elbo_lab import Fit, StandardELBO, fit
from tests.support.compilers import run_uncompiled

X = torch.tensor([1.0, 2.0, 4.0])


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And every warning is an unwanted fallback."""
    run_uncompiled(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", x.new_zeros(()))
    spread = pyro.param("spread", x.new_ones(()), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(loc, spread))


def scheduled(name: str, **keywords: Any) -> PyroOptim:
    arguments = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, **keywords}
    return getattr(pyro.optim, name)(arguments)


def by_parameter(name: str) -> dict[str, Any]:
    return {"lr": 0.1, "betas": (0.5, 0.9)} if name == "loc" else {"lr": 0.01}


OPTIMIZERS: dict[str, Callable[[], PyroOptim]] = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.05}),
    "AdamW": lambda: pyro.optim.AdamW({"lr": 0.05}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.95}),
    "SGD": lambda: pyro.optim.SGD({"lr": 0.01}),
    "momentum": lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.5, "dampening": 0.1}),
    "ExponentialLR": lambda: scheduled("ExponentialLR", gamma=0.95),
    "StepLR": lambda: scheduled("StepLR", step_size=7, gamma=0.5),
    "CosineAnnealingLR": lambda: scheduled("CosineAnnealingLR", T_max=20),
    "LambdaLR": lambda: scheduled("LambdaLR", lr_lambda=lambda step: 1 / (1 + step)),
    "outside: OneCycleLR": lambda: scheduled("OneCycleLR", max_lr=0.1, total_steps=200),
    "outside: ReduceLROnPlateau": lambda: scheduled("ReduceLROnPlateau", patience=3),
    "outside: RMSprop": lambda: pyro.optim.RMSprop({"lr": 0.01}),
    "outside: by parameter": lambda: pyro.optim.Adam(by_parameter),
    "outside: norm": lambda: pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 0.5}),
    "outside: value": lambda: pyro.optim.SGD({"lr": 0.1}, {"clip_value": 0.5}),
}


def train(compile: bool, optimizer: PyroOptim, num_steps: int = 20, **keywords: Any) -> Fit:
    arguments = {"callbacks": [lambda step, loss: False], "seed": 1, **keywords}
    result = fit(
        model,
        guide,
        X,
        objective=StandardELBO(),
        optimizer=optimizer,
        num_steps=num_steps,
        compile=compile,
        progress=False,
        **arguments,
    )
    assert result.compilation.startswith("compiled" if compile else "eager")
    return result


def numbers(optimizer: PyroOptim) -> dict[str, Any]:
    """State, options and rates by parameter."""
    found: dict[str, Any] = {}
    for name, state in optimizer.get_state().items():
        own = state.get("optimizer", state)
        (group,) = own["param_groups"]
        rest = {key: group.get(key) for key in ("lr", "betas", "momentum")}
        schedule = state.get("scheduler", {})
        rest |= {key: schedule.get(key) for key in ("last_epoch", "_last_lr")}
        values = {k: float(v) for k, v in own["state"].get(0, {}).items() if v is not None}
        found[name] = {**values, **{key: value for key, value in rest.items() if value is not None}}
    return copy.deepcopy(found)


def assert_equal(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].keys() == values.keys()
        for key, value in values.items():
            assert found[name][key] == pytest.approx(value, rel=1e-4, abs=1e-6), (name, key)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("compile", [False, True])
def test_a_resumed_fit_is_the_uninterrupted_one(name: str, compile: bool, tmp_path: Path) -> None:
    """From the files of the param store and of the optimizer."""
    pyro.clear_param_store()
    optimizer = OPTIMIZERS[name]()
    train(compile, optimizer, num_steps=15)
    pyro.get_param_store().save(str(tmp_path / "parameters"))
    optimizer.save(str(tmp_path / "optimizer"))
    whole = train(compile, optimizer, seed=2)
    expected = numbers(optimizer)
    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "parameters"))
    other = OPTIMIZERS[name]()
    other.load(str(tmp_path / "optimizer"))
    resumed = train(compile, other, seed=2)
    np.testing.assert_allclose(resumed.losses, whole.losses, rtol=1e-5)
    for key, value in whole.parameters.items():
        torch.testing.assert_close(resumed.parameters[key], value, rtol=1e-5, atol=1e-6)
    assert_equal(numbers(other), expected)
    for values in numbers(other).values():
        assert values.get("step", 35) == 35


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_callbacks_see_the_optimizer_of_an_eager_fit(name: str) -> None:
    """After every step, and after the fit."""
    curves, states = [], []
    for compile in (False, True):
        pyro.clear_param_store()
        optimizer = OPTIMIZERS[name]()
        seen: list[dict[str, Any]] = []

        def look(step: int, loss: float, o: PyroOptim = optimizer, seen: list[Any] = seen) -> None:
            seen.append(numbers(o))

        curves.append(train(compile, optimizer, callbacks=[look]).losses)
        states.append([*seen, numbers(optimizer)])
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)
    for found, expected in zip(states[1], states[0], strict=True):
        assert_equal(found, expected)


def groups(optimizer: PyroOptim) -> list[dict[str, Any]]:
    own = [getattr(held, "optimizer", held) for held in optimizer.optim_objs.values()]
    return [group for one in own for group in one.param_groups]


def slow_down(optimizer: PyroOptim) -> None:
    for group in groups(optimizer):
        group["lr"] /= 10


def forget(optimizer: PyroOptim) -> None:
    for held in optimizer.optim_objs.values():
        held.state.clear()


def scale_moments(optimizer: PyroOptim) -> None:
    for held in optimizer.optim_objs.values():
        for state in held.state.values():
            state["exp_avg"].mul_(10)


def reload(optimizer: PyroOptim) -> None:
    for held in optimizer.optim_objs.values():
        state = copy.deepcopy(held.state_dict())
        for values in state["state"].values():
            values["exp_avg"] *= 5
        held.load_state_dict(state)


def start_anew(optimizer: PyroOptim) -> None:
    optimizer.optim_objs.clear()
    optimizer.grad_clip.clear()


def slow_down_one(optimizer: PyroOptim) -> None:
    groups(optimizer)[0]["lr"] /= 10


def other_betas(optimizer: PyroOptim) -> None:
    for group in groups(optimizer):
        group["betas"] = (0.5, 0.9)


def other_betas_of_one(optimizer: PyroOptim) -> None:
    groups(optimizer)[1]["betas"] = (0.5, 0.9)


def replace(optimizer: PyroOptim) -> None:
    store = pyro.get_param_store()
    store["spread"] = store["spread"].detach() * 2


def stop_training_one(optimizer: PyroOptim) -> None:
    pyro.param("spread").unconstrained().requires_grad_(False)


WITHOUT_A_WORD = [slow_down, forget, scale_moments, reload, start_anew]
WITH_A_WARNING: dict[Callable[[PyroOptim], None], str] = {
    slow_down_one: "learning rate differs from parameter to parameter",
    other_betas: "options of the optimizer other than its learning rate",
    other_betas_of_one: "options differ from parameter to parameter",
    replace: "parameter 'spread' was replaced in the param store",
    stop_training_one: "parameter 'spread' is trained no longer",
}


def both(change: Callable[[PyroOptim], None], make: Callable[[], PyroOptim]) -> list[Any]:
    """An eager and a compiled fit with a change after step 6, losses and final numbers."""
    found = []
    for compile in (False, True):
        pyro.clear_param_store()
        optimizer = make()

        def callback(step: int, loss: float, optimizer: PyroOptim = optimizer) -> None:
            if step == 6:
                change(optimizer)

        result = train(compile, optimizer, callbacks=[callback])
        found.append((result, numbers(optimizer)))
    return found


@pytest.mark.parametrize("change", WITHOUT_A_WORD)
def test_callbacks_change_the_optimizer(change: Callable[[PyroOptim], None]) -> None:
    (eager, expected), (compiled, found) = both(change, OPTIMIZERS["Adam"])
    np.testing.assert_allclose(compiled.losses, eager.losses, rtol=1e-4)
    assert_equal(found, expected)
    assert "eager" not in compiled.compilation


@pytest.mark.parametrize("name", ["ClippedAdam", "momentum", "ExponentialLR"])
def test_callbacks_change_the_learning_rate(name: str) -> None:
    (eager, expected), (compiled, found) = both(slow_down, OPTIMIZERS[name])
    np.testing.assert_allclose(compiled.losses, eager.losses, rtol=1e-4)
    assert_equal(found, expected)


@pytest.mark.parametrize("change", WITH_A_WARNING)
def test_what_has_no_formula_any_more_goes_on_eagerly(
    change: Callable[[PyroOptim], None],
) -> None:
    with pytest.warns(UserWarning, match=f"From step 7 on .*{WITH_A_WARNING[change]}"):
        (eager, expected), (compiled, found) = both(change, OPTIMIZERS["Adam"])
    np.testing.assert_allclose(compiled.losses, eager.losses, rtol=1e-4)
    assert_equal(found, expected)
    assert "eager from step 7" in compiled.compilation


def test_parameters_with_different_histories() -> None:
    """A second fit with one parameter more, and the optimizer of the first."""

    def wider(x: Tensor) -> None:
        shift = pyro.param("shift", x.new_zeros(()))
        loc = pyro.param("loc", x.new_zeros(()))
        pyro.sample("z", dist.Normal(loc + shift, pyro.param("spread", x.new_ones(())).exp()))

    ends = []
    for compile in (False, True):
        pyro.clear_param_store()
        optimizer = pyro.optim.Adam({"lr": 0.05})
        train(compile, optimizer)
        result = fit(
            model,
            wider,
            X,
            objective=StandardELBO(),
            optimizer=optimizer,
            num_steps=20,
            compile=compile,
            progress=False,
            callbacks=[lambda step, loss: False],
        )
        ends.append((result, numbers(optimizer)))
    np.testing.assert_allclose(ends[1][0].losses, ends[0][0].losses, rtol=1e-4)
    assert_equal(ends[1][1], ends[0][1])
    assert "more steps on some parameters" in ends[1][0].compilation


AUTOGUIDES: dict[str, Callable[[], Any]] = {
    "AutoNormal": lambda: AutoNormal(model),
    "AutoMultivariateNormal": lambda: AutoMultivariateNormal(model),
    "AutoGuideList": lambda: listed(model),
    "PyroModule": lambda: Written(),
}


def listed(program: Callable[..., Any]) -> AutoGuideList:
    guides = AutoGuideList(program)
    guides.append(AutoNormal(program))
    return guides


class Written(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroParam(torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        pyro.sample("z", dist.Normal(self.loc, 1.0))


def values(program: Any) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in program.named_parameters()}


def stand_still(program: Any, x: Tensor = X, compile: bool = False) -> None:
    still = pyro.optim.SGD({"lr": 0.0})
    how: dict[str, Any] = {"compile": compile, "progress": False, "num_steps": 1}
    fit(model, program, x, objective=StandardELBO(), optimizer=still, **how)


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called before"])
@pytest.mark.parametrize("kind", AUTOGUIDES)
def test_a_guide_goes_on_from_a_file_of_the_param_store(
    kind: str, called: bool, compile: bool, tmp_path: Path
) -> None:
    first = AUTOGUIDES[kind]()
    fit(model, first, X, objective=StandardELBO(), num_steps=30, compile=False, progress=False)
    fitted = values(first)
    pyro.get_param_store().save(tmp_path / "store.pt")
    pyro.clear_param_store()
    second = AUTOGUIDES[kind]()
    if called:
        second(X)
    pyro.get_param_store().load(tmp_path / "store.pt")
    stand_still(second, compile=compile)
    torch.testing.assert_close(values(second), fitted)
    third = AUTOGUIDES[kind]()  # what is in the store by now is the second's
    fit(model, second, X, objective=StandardELBO(), num_steps=30, compile=False, progress=False)
    stand_still(third)
    assert all((x != fitted[name]).any() for name, x in values(third).items() if "loc" in name)


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    def wide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0).to_event(1))

    first = AutoNormal(wide)
    first(X)
    pyro.get_param_store().save(tmp_path / "store.pt")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store.pt")
    with pytest.raises(ValueError, match=r"'AutoNormal.locs.z' from a file .* shape \(3,\), but"):
        stand_still(AutoNormal(model))
