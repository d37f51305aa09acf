"""Compiled fits whose programs change unseen: the wrong steps are undone and taken again eagerly.

Graphs are run without being compiled, which takes less time and makes no difference here.
"""

import os
import types
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
from torch import Tensor
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from pyro_elbo_lab import Fit, StandardELBO, cyclical_annealing, fit, training
from pyro_elbo_lab.budget import Budget
from pyro_elbo_lab.environment import Watch
from pyro_elbo_lab.inductor import runner_of

X = torch.tensor([1.0, 2.0, 4.0])
STEPS = 40


class Setting:
    scale = 1.0


helpers = types.SimpleNamespace(width=lambda: 1.0)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run as they are; comparisons are made after steps 1, 2, 4, 8, ..."""

    def runner(module: Any, inputs: Any, refill: Any, num_written: int = 0) -> Any:
        saved = [x.clone() for x in inputs[:num_written]]
        refill()
        found = runner_of(module, inputs)
        for x, before in zip(inputs, saved, strict=False):
            x.copy_(before)
        return found, ""

    monkeypatch.setattr(training, "checked_runner", runner)
    monkeypatch.setattr(Budget, "is_due", lambda self, step: step & (step - 1) == 0)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that programs read is seen to change."""
    monkeypatch.setattr(Watch, "unchanged", lambda self: True)
    monkeypatch.setattr(Watch, "changed", lambda self: [])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def guide(x: Tensor, *_: Any) -> None:
    loc = pyro.param("loc", x.new_zeros(()))
    spread = pyro.param("spread", x.new_ones(()), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(loc, spread))


def with_scale(scale: Callable[[], float]) -> Callable[..., None]:
    def model(x: Tensor, *_: Any) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, scale()), obs=x)

    return model


def by_class(value: float) -> None:
    Setting.scale = value


def by_environment(value: float) -> None:
    os.environ["PYRO_ELBO_LAB_TEST_SCALE"] = str(value)


def by_file(value: float) -> None:
    Path("scale.txt").write_text(str(value), encoding="utf-8")


def by_function(value: float) -> None:
    helpers.width = lambda: value


KINDS: dict[str, tuple[Callable[[], float], Callable[[float], None]]] = {
    "class attribute": (lambda: Setting.scale, by_class),
    "environment": (lambda: float(os.environ["PYRO_ELBO_LAB_TEST_SCALE"]), by_environment),
    "file": (lambda: float(Path("scale.txt").read_text(encoding="utf-8")), by_file),
    "replaced function": (lambda: helpers.width(), by_function),
}
SCHEDULES: dict[str, Callable[[int], float]] = {
    "every step": lambda step: 1.0 + step / 20,
    "late": lambda step: 1.0 if step < 21 else 3.0,
    "once": lambda step: 3.0 if 17 <= step < 26 else 1.0,
    "at the end": lambda step: 1.0 if step < STEPS else 5.0,
    "every other step": lambda step: 1.0 + step % 2,
}


def train(model: Any, compile: bool, **keywords: Any) -> tuple[Fit, list[str]]:
    """The fit and what it warned of."""
    pyro.clear_param_store()
    arguments: dict[str, Any] = {
        "objective": StandardELBO(),
        "optimizer": pyro.optim.Adam({"lr": 0.05}),
        "num_steps": STEPS,
        "seed": 1,
        "progress": False,
        **keywords,
    }
    args = () if "batches" in keywords else (X,)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(model, guide, *args, compile=compile, **arguments)
    return result, [str(w.message) for w in caught]


def assert_same(found: Fit, expected: Fit) -> None:
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-4)
    for fitted in ("parameters", "averaged"):
        values = getattr(expected, fitted)
        assert getattr(found, fitted).keys() == values.keys()
        for name, value in values.items():
            torch.testing.assert_close(getattr(found, fitted)[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_callbacks_change_what_is_read(kind: str, schedule: str, blind: None, folder: Path) -> None:
    """The fit is the eager one, and says from which step it is eager if it had to be."""
    read, write = KINDS[kind]
    at = SCHEDULES[schedule]
    fits = []
    for compile in (False, True):
        write(at(0))
        keywords = {"callbacks": [lambda step, loss: write(at(step))], "average": 0.5}
        fits.append(train(with_scale(read), compile, **keywords))
    (expected, quiet), (found, said) = fits
    assert_same(found, expected)
    assert quiet == []
    if schedule == "at the end":
        assert said == [] and "eager" not in found.compilation
    else:
        assert len(said) == 1 and "Pass what changes as a tensor argument" in said[0]
        assert "eager from step" in found.compilation
