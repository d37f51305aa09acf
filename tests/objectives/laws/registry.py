"""Every objective, and every model on which its expectation is known.

A new objective is tested by one more `Row`: the laws in this folder run over all pairs of a row and
a case that fit, with every gradient estimator of the row that is legal there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal

import pytest
import torch

from pyro_elbo_lab import (
    AnalyticKLELBO,
    ChiUpperBound,
    CombinedImportanceWeighted,
    ForwardKL,
    ImportanceWeightedELBO,
    JackknifeELBO,
    Objective,
    PartiallyImportanceWeighted,
    RenyiELBO,
    ReweightedWakeSleep,
    StandardELBO,
    TailAdaptive,
    ThermodynamicELBO,
    uniform_schedule,
)
from pyro_elbo_lab.objectives.gradients.unbiased import Gradient
from tests.objectives.laws import exact, toys

UNBIASED = ("auto", "pathwise", "doubly_reparameterized", "score")
WAKE = ("auto", "wake", "doubly_reparameterized")
FOR_DISCRETE = {"auto", "score", "wake"}

Weights = Literal["linear", "cells", "complete", "joint", "nested"]


@dataclass(frozen=True)
class Row:
    """One objective.

    Attributes:
        build: (gradient=..., **keywords) -> the objective with its particles.
        exact: its expected value and gradient.
        weights: which latents have weights of their own, see `Objective`; "linear" where none has,
            "nested" where outer particles are weighted too.
        gradients: what can be asked for.
        bounds: log p(x) from which side.
        num_inner: K of the expectation.
        num_outer: M of the expectation, for objectives that are no mean over outer particles.
        discrete: whether latents may be discrete.
        skip: cases that are too large to integrate.
    """

    name: str
    build: Callable[..., Objective]
    exact: exact.Expectation
    weights: Weights
    gradients: tuple[str, ...] = UNBIASED
    bounds: Literal["below", "above", "neither"] = "below"
    num_inner: int = 2
    num_outer: int = 1
    discrete: bool = True
    skip: frozenset[str] = frozenset()

    @property
    def averages(self) -> bool:
        """Whether the outer particles are averaged, so that many make the estimate precise."""
        return self.num_outer == 1


@dataclass(frozen=True)
class Case:
    """One model with its guide.

    Attributes:
        toy: makes it.
        weights: the objectives whose expectation its nodes give.
        discrete: whether a latent is discrete.
        keywords: of the objective.
    """

    name: str
    toy: Callable[[], toys.Toy]
    weights: frozenset[Weights]
    discrete: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)


def mean_of(build: Callable[..., Objective], *args: Any) -> Callable[..., Objective]:
    """An objective whose outer particles are averaged: as many as a test asks for."""

    def built(gradient: str, num_outer: int, **keywords: Any) -> Objective:
        chosen = {} if gradient == "only" else {"gradient": gradient}
        return build(*args, num_outer=num_outer, **chosen, **keywords)

    return built


def standard(gradient: Gradient, num_outer: int, **keywords: Any) -> Objective:
    return StandardELBO(num_outer, gradient, **keywords)


def analytic_kl(gradient: Gradient, num_outer: int, **keywords: Any) -> Objective:
    return AnalyticKLELBO(num_outer, **keywords)


def importance_weighted(gradient: Gradient, num_outer: int, **keywords: Any) -> Objective:
    return ImportanceWeightedELBO(2, num_outer, gradient, **keywords)


def nested(num_inner: int, gradient: Gradient, **keywords: Any) -> Objective:
    return ImportanceWeightedELBO(num_inner, 2, gradient, outer="importance", **keywords)


def partially(num_inner: int, gradient: Gradient, **keywords: Any) -> Objective:
    return PartiallyImportanceWeighted(num_inner, 2, gradient, **keywords)


def schedule(num: int) -> tuple[float, ...]:
    return uniform_schedule(num)


TWO_BY_TWO = frozenset({"joint", "joint-float32", "joint-scales", "mixed-cells", "mixed-joint"})

ROWS = [
    Row("ELBO", standard, exact.of_bound(exact.mean), "linear", num_inner=1),
    Row("analytic KL", analytic_kl, exact.of_bound(exact.mean), "linear", ("only",), num_inner=1),
    Row("IW", importance_weighted, exact.of_bound(exact.importance), "cells"),
    Row("Renyi 0.5", mean_of(RenyiELBO, 0.5, 2), exact.of_bound(exact.renyi(0.5)), "cells"),
    Row("Renyi 2", mean_of(RenyiELBO, 2.0, 2), exact.of_bound(exact.renyi(2.0)), "cells"),
    Row(
        "TVO left",
        mean_of(ThermodynamicELBO, 2, schedule(3)),
        exact.of_bound(exact.thermodynamic(3, right=False)),
        "cells",
    ),
    Row(
        "CIWAE",
        mean_of(CombinedImportanceWeighted, 0.3, 2),
        exact.of_bound(exact.combined(0.3)),
        "cells",
    ),
    Row(
        "jackknife",
        mean_of(JackknifeELBO, 2),
        exact.of_bound(exact.jackknife_of_two),
        "cells",
        bounds="neither",
    ),
    Row(
        "TVO right",
        mean_of(ThermodynamicELBO, 2, schedule(3), "right"),
        exact.of_wake(exact.thermodynamic(3, right=True), exact.of_right_sum(3), model=False),
        "joint",
        WAKE,
        bounds="above",
    ),
    Row(
        "chi",
        mean_of(ChiUpperBound, 2),
        exact.of_wake(exact.renyi(-1.0), exact.of_second_moment, model=False),
        "joint",
        WAKE,
        bounds="above",
    ),
    Row("wake", mean_of(ReweightedWakeSleep, 2), exact.of_wake(exact.importance), "complete", WAKE),
    Row(
        "forward KL",
        mean_of(ForwardKL, 2),
        exact.of_wake(partial(exact.at_temperature, beta=1.0), model=False),
        "complete",
        WAKE,
        bounds="above",
    ),
    Row(
        "tail-adaptive",
        mean_of(TailAdaptive, 2),
        exact.of_tail_adaptive,
        "complete",
        ("only",),
        bounds="neither",
        discrete=False,
    ),
    Row(
        "PIWAE 2 x 2",
        partial(partially, 2),
        exact.of_partial,
        "complete",
        num_outer=2,
        skip=TWO_BY_TWO,
    ),
    Row(
        "PIWAE 1 x 2",
        partial(partially, 1),
        exact.of_partial,
        "complete",
        num_inner=1,
        num_outer=2,
        skip=frozenset({"joint-float32", "local", "subsampled-local", "mixed-cells"}),
    ),
    Row(
        "nested 2 x 2",
        partial(nested, 2),
        exact.of_bound(exact.importance, exact.importance),
        "nested",
        num_outer=2,
    ),
]

SCALES_AND_MASKS: list[dict[str, Any]] = [
    {"model_scale": 0.4},
    {"guide_scale": 0.4},
    {"model_scale": 0.4, "guide_scale": 0.4},
    {"model_mask": [True, False, True]},
    {"guide_mask": [True, False, True]},
    {"model_mask": [True, False, True], "guide_mask": [True, False, True]},
    {"model_mask": [True, False, True], "guide_scale": 0.4},
]


def names(*weights: Weights) -> frozenset[Weights]:
    return frozenset(weights)


SEPARATE = names("linear", "cells")
JOINT: dict[str, Any] = {"num_data": 1, "joint": True}

CASES = [
    Case("shared-and-local", toys.hierarchical, SEPARATE),
    Case("shared-and-local-float32", partial(toys.hierarchical, dtype=torch.float32), SEPARATE),
    *[
        Case(f"scaled-{factors}", partial(toys.hierarchical, **factors), SEPARATE)
        for factors in SCALES_AND_MASKS
    ],
    Case("subsampled", partial(toys.hierarchical, num_data=5, subsample_size=2), SEPARATE),
    Case("local", toys.local, names("complete")),
    Case("subsampled-local", partial(toys.local, num_data=5, subsample_size=2), names("complete")),
    Case("joint", partial(toys.hierarchical, **JOINT), names("complete", "joint")),
    Case(
        "joint-float32",
        partial(toys.hierarchical, **JOINT, dtype=torch.float32),
        names("complete", "joint"),
    ),
    Case(
        "joint-scales",
        partial(toys.hierarchical, **JOINT, model_scale=0.4, guide_scale=0.7),
        names("complete", "joint"),
    ),
    Case(
        "joint-asked-for",
        partial(toys.hierarchical, **JOINT, guide_scale=0.4),
        names("cells"),
        keywords={"local_plates": ()},
    ),
    Case(
        "discrete-cells",
        partial(toys.discrete, plate=True),
        names("linear", "cells", "complete"),
        discrete=True,
    ),
    Case(
        "discrete-joint",
        partial(toys.discrete, plate=False),
        names("linear", "cells", "complete", "joint"),
        discrete=True,
    ),
    Case(
        "mixed-cells",
        partial(toys.mixed, local=True),
        names("linear", "cells", "complete"),
        discrete=True,
    ),
    Case(
        "mixed-joint",
        partial(toys.mixed, local=False),
        names("linear", "cells", "complete", "joint"),
        discrete=True,
    ),
    Case("nested", partial(toys.hierarchical, num_data=1), names("nested")),
    Case(
        "nested-scales",
        partial(toys.hierarchical, num_data=1, model_scale=0.4, guide_scale=0.7),
        names("nested"),
    ),
    Case("nested-discrete", toys.discrete_hierarchy, names("nested"), discrete=True),
]

ROW = {row.name: row for row in ROWS}
CASE = {case.name: case for case in CASES}


@cache
def expected(row_name: str, case_name: str) -> exact.Exact:
    """The expectation of a row on a case, computed once for all gradients."""
    row, case = ROW[row_name], CASE[case_name.removesuffix("-float32")]
    return row.exact(case.toy(), row.num_inner, row.num_outer)


def combinations() -> list[Any]:
    """All (row, gradient, case) that fit."""
    return list(_combinations())


def _combinations() -> Iterator[Any]:
    for row in ROWS:
        for case in CASES:
            if row.weights not in case.weights or case.name in row.skip:
                continue
            if case.discrete and not row.discrete:
                continue
            for gradient in row.gradients:
                if not case.discrete or gradient in FOR_DISCRETE | {"only"}:
                    yield pytest.param(row, gradient, case, id=f"{row.name}-{gradient}-{case.name}")


def rows_and_gradients() -> list[Any]:
    """All (row, gradient)."""
    return [
        pytest.param(row, gradient, id=f"{row.name}-{gradient}")
        for row in ROWS
        for gradient in row.gradients
    ]
