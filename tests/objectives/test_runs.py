"""How often model and guide run before the first loss."""

from collections import Counter
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ELBO

from pyro_elbo_lab import ImportanceWeightedELBO, StandardELBO, evidence, from_guide
from pyro_elbo_lab.programs.pair import Pair

Y = torch.linspace(-2.0, 2.0, 8)


def counted() -> tuple[Counter[str], Pair]:
    counts: Counter[str] = Counter()

    def model() -> None:
        counts["model"] += 1
        center = pyro.sample("center", dist.Normal(0.0, 2.0))
        with pyro.plate("groups", len(Y)):
            effect = pyro.sample("effect", dist.Normal(center, 1.0))
            pyro.sample("y", dist.Normal(effect, 1.0), obs=Y)

    def guide() -> None:
        counts["guide"] += 1
        pyro.sample("center", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
        with pyro.plate("groups", len(Y)):
            pyro.sample("effect", dist.Normal(pyro.param("locs", torch.zeros(8)), 1.0))

    return counts, Pair(model, guide)


BEFORE: dict[str, tuple[int, Callable[[], ELBO]]] = {
    "plain": (2, StandardELBO),
    "vectorized": (4, lambda: StandardELBO(4, vectorize_particles=True)),
    "weights of cells": (4, lambda: ImportanceWeightedELBO(8, vectorize_particles=True)),
    "joint weights": (
        4,
        lambda: ImportanceWeightedELBO(8, local_plates=(), vectorize_particles=True),
    ),
}
"""The most runs that a plan may take."""


@pytest.mark.parametrize("kind", BEFORE)
def test_runs_before_the_first_loss(kind: str) -> None:
    most, make = BEFORE[kind]
    counts, pair = counted()
    objective = make()
    objective.loss(pair.model, pair.guide)
    first = dict(counts)
    counts.clear()
    objective.loss(pair.model, pair.guide)
    assert counts["model"] == counts["guide"] == 1
    assert max(first.values()) - 1 <= most


def test_what_is_known_of_a_pair_is_worked_out_once() -> None:
    counts, pair = counted()
    from_guide(pair.guide, pair.model, num_samples=10)
    assert counts["guide"] <= 2 + 1 + 2 + 1 + 1  # structure, shapes, probe, draws, cells
    counts.clear()
    evidence(pair.model, pair.guide, num_samples=100)
    assert counts["guide"] <= 2 + 2 + 1 + 1 + 2  # structure, probe, draws, cells, their draws
