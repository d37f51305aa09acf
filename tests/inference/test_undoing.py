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

from pyro_elbo_lab import (
    Fit,
    ImportanceWeightedELBO,
    StandardELBO,
    cyclical_annealing,
    fit,
)
from pyro_elbo_lab.compilation.watch.environment import Watch
from pyro_elbo_lab.inference.fitting import graphs, trainer
from pyro_elbo_lab.inference.fitting.budget import Budget
from pyro_elbo_lab.inference.fitting.svi_steps import Rewindable
from tests.support.compilers import run_uncompiled

X = torch.tensor([1.0, 2.0, 4.0])
STEPS = 40


class Setting:
    scale = 1.0


helpers = types.SimpleNamespace(width=lambda: 1.0, scale=1.0)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run as they are; comparisons are made after steps 1, 2, 4, 8, ..."""
    run_uncompiled(monkeypatch)
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
    "replaced function": (lambda: helpers.width(), by_function),
}
SCHEDULES: dict[str, Callable[[int], float]] = {
    "every step": lambda step: 1.0 + step / 20,
    "late": lambda step: 1.0 if step < 21 else 3.0,
    "at the end": lambda step: 1.0 if step < STEPS else 5.0,
    "every other step": lambda step: 1.0 + step % 2,
}


def train(model: Any, compile: bool, **keywords: Any) -> tuple[Fit, list[str]]:
    """The fit and what it warned of."""
    pyro.clear_param_store()
    torch.manual_seed(0)  # a DataLoader draws its first order before the fit has its seed
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
def test_callbacks_change_what_is_read(kind: str, schedule: str, blind: None) -> None:
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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_callbacks_write_a_file_that_is_read(schedule: str, folder: Path) -> None:
    at = SCHEDULES[schedule]
    model = with_scale(lambda: float(Path("scale.txt").read_text(encoding="utf-8")))
    fits = []
    for compile in (False, True):
        by_file(at(0))
        callbacks = [lambda step, loss: by_file(at(step))]
        fits.append(train(model, compile, callbacks=callbacks, average=0.5))
    (expected, quiet), (found, said) = fits
    assert_same(found, expected)
    assert quiet == []
    assert len(said) == 1 and "it reads files" in said[0]
    assert found.compilation.startswith("eager: it reads files")


def late(step: int) -> float:
    return 1.0 if step < 21 else 3.0


def switching(compile: bool, at: Callable[[int], float] = late, **keywords: Any) -> Any:
    """A fit whose callback changes a class attribute."""
    by_class(at(0))
    callbacks = [lambda step, loss: by_class(at(step))]
    return train(with_scale(lambda: Setting.scale), compile, callbacks=callbacks, **keywords)


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "schedule": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.95}
    ),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.95}),
    "momentum": lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.5}),
    "outside: RMSprop": lambda: pyro.optim.RMSprop({"lr": 0.01}),
    "outside: on plateau": lambda: pyro.optim.ReduceLROnPlateau(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "patience": 3}
    ),
    "outside: by parameter": lambda: pyro.optim.Adam(
        lambda name: {"lr": 0.1 if name == "loc" else 0.01}, {"clip_norm": 1.0}
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_the_optimizer_is_undone(name: str, blind: None) -> None:
    states = []
    fits = []
    for compile in (False, True):
        optimizer = OPTIMIZERS[name]()
        fits.append(switching(compile, optimizer=optimizer)[0])
        states.append(optimizer.get_state())
    assert_same(fits[1], fits[0])
    for parameter, state in states[0].items():
        found = states[1][parameter]
        schedules = [x.get("scheduler", {"_last_lr": []})["_last_lr"] for x in (found, state)]
        assert schedules[0] == pytest.approx(schedules[1], rel=1e-4)
        one, other = (x.get("optimizer", x)["state"] for x in (found, state))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert "eager from step 17" in fits[1].compilation
    assert fits[1].compilation.startswith("compiled loss") == name.startswith("outside")


def test_scheduled_weights_are_compared_and_undone(blind: None) -> None:
    objectives = [StandardELBO(kl_weight=cyclical_annealing(20, 0.5)) for _ in range(2)]
    expected, _ = switching(False, objective=objectives[0])
    found, said = switching(True, objective=objectives[1])
    assert_same(found, expected)
    assert len(said) == 1 and "eager from step 17" in found.compilation
    assert [objective.num_gradients for objective in objectives] == [STEPS, STEPS]


def test_gradients_are_compared_too(blind: None) -> None:
    """The loss of the first step is the same whatever the factor."""

    def model(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        loc = pyro.param("loc", x.new_zeros(()))
        pyro.factor("f", (Setting.scale * (loc - loc.detach())).sum())

    fits = []
    for compile in (False, True):
        by_class(1.0)
        callbacks = [lambda step, loss: by_class(late(step))]
        fits.append(train(model, compile, callbacks=callbacks))
    assert_same(fits[1][0], fits[0][0])
    assert "gradients" in fits[1][1][0] or "losses" in fits[1][1][0]


def shuffled(switch_at: int) -> Iterator[list[Tensor]]:
    """Batches of a shuffled DataLoader, and a switch beside them."""
    loader = DataLoader(TensorDataset(torch.linspace(0, 2, 12)), batch_size=4, shuffle=True)
    step = 0
    while True:
        for batch in loader:
            step += 1
            by_class(1.0 if step < switch_at else 3.0)
            yield batch


def test_batches_are_gone_through_again(blind: None) -> None:
    """Found after step 32: steps from 17 on, where all was well, are taken again as things are."""
    by_class(1.0)
    expected, _ = train(with_scale(lambda: Setting.scale), False, batches=shuffled(17))
    by_class(1.0)
    found, said = train(with_scale(lambda: Setting.scale), True, batches=shuffled(23))
    assert_same(found, expected)
    assert len(said) == 1 and "Steps 17 to 32 are undone" in said[0]


def test_few_batches_are_kept(blind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the limit are compared at once: then all steps before are known to be right."""
    monkeypatch.setattr(
        "pyro_elbo_lab.inference.fitting.graph_steps._MOST_BYTES", 40
    )  # 3 batches of 4 numbers
    by_class(1.0)
    expected, _ = train(with_scale(lambda: Setting.scale), False, batches=shuffled(23))
    by_class(1.0)
    found, said = train(with_scale(lambda: Setting.scale), True, batches=shuffled(24))
    assert_same(found, expected)
    assert "Steps 23 to 25 are undone" in said[0]


def test_blocks_are_taken_again(blind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something from outside changes what the model reads, between the second block and the third:
    the fit ends where it should."""
    by_class(3.0)
    run, runs = trainer.Trainer.run, 0

    def switching_run(self: Any, *args: Any) -> int:
        nonlocal runs
        runs += 1
        by_class(3.0 if runs < 3 else 1.0)
        return run(self, *args)

    monkeypatch.setattr(trainer.Trainer, "run", switching_run)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / 1500)})
    model = with_scale(lambda: Setting.scale)
    found, said = train(model, True, num_steps=1500, optimizer=optimizer)
    assert len(said) == 1 and found.losses.shape == (1500,)
    assert pyro.param("loc").item() == pytest.approx(7 / 4, abs=0.05)
    assert pyro.param("spread").item() == pytest.approx(0.5, abs=0.05)


def test_callbacks_see_the_steps_again(blind: None) -> None:
    calls: list[tuple[int, float]] = []

    def callback(step: int, loss: float) -> None:
        calls.append((step, loss))
        by_class(late(step))

    by_class(1.0)
    found, said = train(with_scale(lambda: Setting.scale), True, callbacks=[callback])
    steps = [step for step, _ in calls]
    assert steps == [*range(1, 32), 16, *range(17, STEPS + 1)]
    np.testing.assert_array_equal([loss for _, loss in calls[31:]], found.losses[15:])
    assert "callbacks called again" in said[0]


def test_an_error_of_the_program_is_raised_as_eagerly(blind: None) -> None:
    def scale() -> float:
        if Setting.scale > 2:
            raise LookupError("no scale")
        return Setting.scale

    ends = []
    for compile in (False, True):
        by_class(1.0)
        seen: list[int] = []

        def callback(step: int, loss: float, seen: list[int] = seen) -> None:
            seen.append(step)
            by_class(late(step))

        with pytest.raises(LookupError, match="no scale"):
            train(with_scale(scale), compile, callbacks=[callback])
        ends.append((seen[-1], pyro.param("loc").item()))
    assert ends[0] == (21, pytest.approx(ends[1][1], rel=1e-4)) and ends[1][0] == 21


def test_an_early_stop_is_compared(blind: None) -> None:
    """By a callback, at a step that is not due."""
    fits = []
    for compile in (False, True):
        by_class(1.0)

        def callback(step: int, loss: float) -> bool:
            by_class(late(step))
            return step == 29

        fits.append(train(with_scale(lambda: Setting.scale), compile, callbacks=[callback]))
    assert_same(fits[1][0], fits[0][0])
    assert fits[1][0].num_steps == 29 and len(fits[1][1]) == 1


def ends_early(step: int, loss: float) -> bool:
    return step == 29


def changes_at_the_end(step: int, loss: float) -> None:
    helpers.scale = 1.0 if step < STEPS else 5.0


def changes_and_ends(step: int, loss: float) -> bool:
    helpers.scale = 1.0 if step < 29 else 5.0
    return step == 29


def loader() -> DataLoader:
    """Two batches of 3 rows and one of 1, with a number beside each row."""
    return DataLoader(TensorDataset(torch.linspace(0, 2, 7), torch.arange(7)), batch_size=3)


HARMLESS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "early stop": lambda: {"callbacks": [ends_early]},
    "change after the last step": lambda: {"callbacks": [changes_at_the_end]},
    "change at an early stop": lambda: {"callbacks": [changes_and_ends]},
    "batches": lambda: {"batches": loader()},
    "batches and a plateau": lambda: {
        "batches": loader(),
        "optimizer": OPTIMIZERS["outside: on plateau"](),
    },
    "shuffled batches": lambda: {"batches": shuffled(1000)},
    "averages": lambda: {"average": 0.3, "batches": loader()},
    "annealing": lambda: {"objective": StandardELBO(kl_weight=cyclical_annealing(10, 0.5))},
    "annealing with batches": lambda: {
        "objective": StandardELBO(kl_weight=cyclical_annealing(10, 0.5)),
        "batches": loader(),
    },
    "planned anew": lambda: {
        "objective": ImportanceWeightedELBO(3),
        "batches": loader(),
        "callbacks": [lambda step, loss: False],
    },
}


@pytest.mark.parametrize("name", HARMLESS)
def test_no_false_alarms(name: str) -> None:
    helpers.scale = 1.0
    found, said = train(with_scale(lambda: helpers.scale), True, **HARMLESS[name]())
    assert said == [] and "eager from step" not in found.compilation
    helpers.scale = 1.0
    keywords = HARMLESS[name]()
    if keywords.keys() & {"callbacks", "batches"}:  # the same stream of random numbers
        expected, _ = train(with_scale(lambda: helpers.scale), False, **keywords)
        assert_same(found, expected)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Captures after the first."""
    captures: list[Any] = []
    evaluate = graphs.evaluate

    def counting(*args: Any) -> Any:
        captures.append(args)
        return evaluate(*args)

    monkeypatch.setattr(graphs, "evaluate", counting)
    return captures


def test_a_number_that_changes_every_step_is_not_captured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps run eagerly, and one warning names the place."""
    captures = counted(monkeypatch)
    fits = []
    for compile in (False, True):
        helpers.scale = 1.0

        def callback(step: int, loss: float) -> None:
            helpers.scale = 1.0 + step / 20

        keywords = {"callbacks": [callback], "average": 0.5}
        fits.append(train(with_scale(lambda: helpers.scale), compile, **keywords))
    assert_same(fits[1][0], fits[0][0])
    assert captures == []
    assert len(fits[1][1]) == 1 and "what they read changes: 'helpers.scale'" in fits[1][1][0]


def test_a_number_that_is_switched_gets_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once so many steps have met it, and the first graph serves again when it is switched back."""
    monkeypatch.setattr(graphs, "OFTEN", 5)
    captures = counted(monkeypatch)
    fits = []
    for compile in (False, True):
        helpers.scale = 1.0

        def callback(step: int, loss: float) -> None:
            helpers.scale = 1.0 if step % 20 < 10 else 2.0

        optimizer = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.95})
        keywords = {"callbacks": [callback], "average": 0.5, "optimizer": optimizer}
        fits.append(train(with_scale(lambda: helpers.scale), compile, **keywords))
    assert_same(fits[1][0], fits[0][0])
    assert len(captures) == 1 and fits[1][1] == []


def test_batches_of_many_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some get graphs, others run eagerly, and one warning says so; state and averages go with
    them."""
    monkeypatch.setattr(graphs, "OFTEN", 3)
    sizes = [3, 3, 1, 2, 5, 4, 6]
    batches = [torch.linspace(0, 2, n) for n in sizes]
    fits = []
    for compile in (False, True):
        optimizer = OPTIMIZERS["schedule"]()
        keywords = {"batches": batches, "average": 0.5, "optimizer": optimizer}
        fits.append(train(with_scale(lambda: 1.0), compile, **keywords))
    assert_same(fits[1][0], fits[0][0])
    assert len(fits[1][1]) == 1 and "their arguments change" in fits[1][1][0]
    assert "batches of one size" in fits[1][1][0]


def test_a_batch_that_cannot_be_captured_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a fit, which goes on."""
    monkeypatch.setattr(graphs, "OFTEN", 3)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        scale = 1.0 if len(x) == 3 or z > 0 else 2.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    fits = [train(model, compile, batches=[X, X, X[:2]]) for compile in (False, True)]
    assert_same(fits[1][0], fits[0][0])
    assert len(fits[1][1]) == 1 and "a Python number or branch depends" in fits[1][1][0]
    assert fits[1][0].compilation.startswith("compiled: whole steps")


def test_the_latest_arguments_are_those_of_the_step_that_is_taken_again() -> None:
    stream = Rewindable(iter([(1,), (2,), (3,)]), (1,), keep=True)
    assert stream.latest == (1,)
    stream.next()
    stream.mark()
    assert [stream.next(), stream.next()] == [(2,), (3,)]
    stream.rewind()
    assert (stream.next(), stream.latest) == ((1,), (1,))  # the last before the mark, and on
    assert (stream.next(), stream.latest) == ((2,), (2,))
