"""Repeated evaluations of an objective's value and gradient."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from tests.objectives.laws.toys import Toy


def values_and_gradients(objective: ELBO, toy: Toy, num_evaluations: int) -> tuple[Tensor, Tensor]:
    """The objective (N,) and its gradient (N, parameters) at N evaluations in a row."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    objective.loss(toy.model, toy.guide)
    store = pyro.get_param_store()
    parameters = [store[name].unconstrained() for name in toy.parameters]
    values, gradients = [], []
    for _ in range(num_evaluations):
        for p in parameters:
            p.grad = None
        values.append(-objective.loss_and_grads(toy.model, toy.guide))
        grads = [torch.zeros_like(p) if p.grad is None else -p.grad for p in parameters]
        gradients.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.tensor(values, dtype=gradients[0].dtype), torch.stack(gradients)


def mean_loss(evaluate: Callable[[], float], num_evaluations: int) -> Tensor:
    """Losses of N evaluations in a row, (N,)."""
    return torch.tensor([evaluate() for _ in range(num_evaluations)], dtype=torch.float64)


def guide_gradients(objective: ELBO, model: Any, guide: Any, num_evaluations: int) -> Tensor:
    """Gradients of the loss in a guide module's parameters, (N, parameters)."""
    parameters = list(guide.parameters())
    samples = []
    for _ in range(num_evaluations):
        guide.zero_grad()
        objective.loss_and_grads(model, guide)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        samples.append(torch.cat([grad.reshape(-1) for grad in grads]))
    return torch.stack(samples)


def variance_ratio(numerator: Tensor, denominator: Tensor) -> tuple[float, float]:
    """Of the variances of two independent samples (N, ...), summed over all entries, and its
    standard error by the delta method."""
    relative = 0.0
    variances = []
    for samples in (numerator, denominator):
        flat = samples.reshape(len(samples), -1)
        squares = ((flat - flat.mean(0)) ** 2).sum(1)
        variances.append(squares.mean().item())
        relative += (squares.var() / squares.mean() ** 2).item() / len(squares)
    ratio = variances[0] / variances[1]
    return ratio, ratio * math.sqrt(relative)
