"""Optimizers as formulas take the steps that PyTorch's and Pyro's own take."""

from typing import Any

import numpy as np
import pyro
import pyro.optim
import pytest
import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_elbo_lab.inference.fitting.update_rules import Update, update_of

OPTIMIZERS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.1}),
    "Adam, betas": lambda: pyro.optim.Adam({"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}),
    "Adam, weight decay": lambda: pyro.optim.Adam({"lr": 0.1, "weight_decay": 0.3}),
    "AdamW": lambda: pyro.optim.AdamW({"lr": 0.1, "weight_decay": 0.3}),
    "SGD": lambda: pyro.optim.SGD({"lr": 0.1}),
    "SGD, momentum": lambda: pyro.optim.SGD({"lr": 0.1, "momentum": 0.8, "dampening": 0.4}),
    "SGD, Nesterov": lambda: pyro.optim.SGD({"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "SGD, weight decay": lambda: pyro.optim.SGD({"lr": 0.1, "weight_decay": 0.3}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.1, "clip_norm": 0.7, "lrd": 0.9}),
    "ClippedAdam, weight decay": lambda: pyro.optim.ClippedAdam({"lr": 0.1, "weight_decay": 0.3}),
    "ClippedAdam, centered": lambda: pyro.optim.ClippedAdam({"lr": 0.1, "centered_variance": True}),
    "exponential schedule": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.8}
    ),
    "step schedule": lambda: pyro.optim.StepLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "step_size": 3, "gamma": 0.2}
    ),
}
STEPS = 8
SHAPES = [(3,), (2, 2), ()]


def gradients() -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
        for _ in range(STEPS)
    ]


def start() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    pyro.clear_param_store()
    for i, shape in enumerate(SHAPES):
        pyro.param(f"p{i}", torch.randn(shape, generator=generator, dtype=torch.float64))
    return [pyro.param(f"p{i}").unconstrained() for i in range(len(SHAPES))]


def by_pyro(optimizer: PyroOptim, leaves: list[Tensor], given: list[list[Tensor]]) -> None:
    for row in given:
        for leaf, gradient in zip(leaves, row, strict=True):
            leaf.grad = gradient.clone()
        optimizer(leaves)
        if isinstance(optimizer, pyro.optim.PyroLRScheduler):
            optimizer.step()


def by_formula(update: Update, leaves: list[Tensor], given: list[list[Tensor]]) -> None:
    rows = torch.from_numpy(update.scalars(len(given)))
    for gradients_, row in zip(given, rows, strict=True):
        for i, (leaf, gradient) in enumerate(zip(leaves, gradients_, strict=True)):
            state = {name: parts[i] for name, parts in update.state.items()}
            with torch.no_grad():
                moved, state = update.rule.update(leaf, gradient, state, row, update.options)
                leaf.copy_(moved)
            for name in state:
                update.state[name][i] = state[name]


def formula(optimizer: PyroOptim, leaves: list[Tensor]) -> Update:
    update = update_of(optimizer, leaves)
    assert isinstance(update, Update), update
    return update


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_takes_the_same_steps(name: str) -> None:
    expected, found = start(), start()
    by_pyro(OPTIMIZERS[name](), expected, gradients())
    by_formula(formula(OPTIMIZERS[name](), found), found, gradients())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hands_its_state_over_and_back(name: str) -> None:
    """Some steps of Pyro's, some of the formula, some of Pyro's again: as if all were Pyro's."""
    expected, found, given = start(), start(), gradients()
    by_pyro(OPTIMIZERS[name](), expected, given)
    optimizer = OPTIMIZERS[name]()
    by_pyro(optimizer, found, given[:3])
    update = formula(optimizer, found)
    by_formula(update, found, given[3:6])
    update.write_back()
    by_pyro(optimizer, found, given[6:])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (pyro.optim.Adam(lambda name: {"lr": 0.1 if name == "p0" else 0.2}), "rate differs"),
        (pyro.optim.Adam(lambda name: {"eps": 0.1 if name == "p0" else 0.2}), "options differ"),
        (pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 1.0}), "clips"),
        (pyro.optim.RMSprop({"lr": 0.1}), "RMSprop has no formula"),
        (pyro.optim.Adam({"lr": 0.1, "amsgrad": True}), "amsgrad=True"),
        (pyro.optim.Adam({"lr": torch.tensor(0.1)}), "learning rate is a tensor"),
        (pyro.optim.Adam({"lr": 0.1, "decoupled_weight_decay": True}), "decoupled_weight_decay"),
        (
            pyro.optim.OneCycleLR(
                {
                    "optimizer": torch.optim.Adam,
                    "optim_args": {"lr": 0.1},
                    "max_lr": 0.1,
                    "total_steps": 20,
                }
            ),
            "OneCycleLR moves more than the learning rate",
        ),
        (
            pyro.optim.ReduceLROnPlateau(
                {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}}
            ),
            "depends on the losses",
        ),
    ],
)
def test_says_why_there_is_no_formula(optimizer: PyroOptim, reason: str) -> None:
    found: Any = update_of(optimizer, start())
    assert isinstance(found, str) and reason in found


def test_parameters_of_two_types_have_no_formula() -> None:
    leaves = [torch.zeros(2, requires_grad=True), torch.zeros(2, dtype=torch.float64)]
    found = update_of(pyro.optim.Adam({"lr": 0.1}), leaves)
    assert isinstance(found, str) and "more than one type" in found


def test_parameters_that_took_different_numbers_of_steps_have_no_formula() -> None:
    leaves, optimizer = start(), pyro.optim.Adam({"lr": 0.1})
    by_pyro(optimizer, leaves[:1], [row[:1] for row in gradients()])
    found = update_of(optimizer, leaves)
    assert isinstance(found, str) and "more steps" in found


def test_scalars_are_in_double_precision() -> None:
    """1 - 0.999 ** 1 has three digits in float32."""
    rows = formula(pyro.optim.Adam({"lr": 0.1}), start()).scalars(1)
    np.testing.assert_allclose(rows[0], [0.1 / (1 - 0.9), (1 - 0.999) ** 0.5, 0.1], rtol=1e-15)
