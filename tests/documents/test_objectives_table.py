"""The table of tutorials/objectives.md says what the objectives do."""

import inspect
import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_elbo_lab
from pyro_elbo_lab import (
    AnalyticKLELBO,
    AnnealedELBO,
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
    compiled,
)
from tests.objectives.laws import toys

PAGE = Path(__file__).parents[2] / "tutorials" / "objectives.md"
REFERENCE = {"z": torch.zeros(20, 5, dtype=torch.float64)}
BUILD = {
    "StandardELBO(K)": lambda: StandardELBO(2),
    "AnalyticKLELBO(K)": lambda: AnalyticKLELBO(2),
    "ImportanceWeightedELBO(K, M)": lambda: ImportanceWeightedELBO(2, 2),
    'ImportanceWeightedELBO(K, M, outer="importance")': lambda: ImportanceWeightedELBO(
        2, 2, outer="importance"
    ),
    "CombinedImportanceWeighted(beta, K)": lambda: CombinedImportanceWeighted(0.5, 2),
    "PartiallyImportanceWeighted(K, M)": lambda: PartiallyImportanceWeighted(2, 2),
    "RenyiELBO(alpha, K)": lambda: RenyiELBO(0.5, 2),
    "ThermodynamicELBO(K)": lambda: ThermodynamicELBO(2),
    'ThermodynamicELBO(K, side="right")': lambda: ThermodynamicELBO(2, side="right"),
    "JackknifeELBO(K, order)": lambda: JackknifeELBO(3, 2),
    "AnnealedELBO(M, T)": lambda: AnnealedELBO(2, 2),
    "ChiUpperBound(K, n)": lambda: ChiUpperBound(2, 2.0),
    "ForwardKL(K)": lambda: ForwardKL(2),
    "ForwardKL(K, reference)": lambda: ForwardKL(2, REFERENCE),
    "ReweightedWakeSleep(K)": lambda: ReweightedWakeSleep(2),
    "TailAdaptive(K, beta)": lambda: TailAdaptive(2, -1.0),
}


def table():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): row for row in rows if len(row) == 9}


@pytest.fixture(params=BUILD)
def entry(request):
    return BUILD[request.param](), table()[request.param]


def test_every_objective_has_its_row():
    assert table().keys() == BUILD.keys()
    constructors = {
        name
        for name in pyro_elbo_lab.__all__
        if inspect.isfunction(getattr(pyro_elbo_lab, name))
        and inspect.signature(getattr(pyro_elbo_lab, name)).return_annotation
        in (Objective, "Objective")
    }
    assert {name.partition("(")[0] for name in BUILD} == constructors


def test_direction_and_gradients(entry):
    objective, row = entry
    assert objective.target.upper == (row[2] == "above")
    assert tuple(re.split(", ", row[4])) == objective.method.gradients


def test_discrete_latents(entry):
    objective, row = entry
    toy = toys.discrete(plate=True)
    if "reparameterized" in row[5]:
        with pytest.raises(ValueError, match="'z'"):
            objective.loss(toy.model, toy.guide)
    elif "reference" not in row[0]:
        objective.loss_and_grads(toy.model, toy.guide)


def test_plates(entry):
    objective, row = entry
    shared, local = toys.hierarchical(num_data=2), toys.local(num_data=2)
    places = {}
    if "reference" in row[0]:
        objective.source = None
    for name, toy in (("shared", shared), ("local", local)):
        explanation = objective.explain(toy.model, toy.guide)
        places[name] = {r.site: r.place for r in explanation.rows}
    separate = "cells of data"
    if row[6].startswith("yes"):
        assert places == {"shared": {"g": "shared", "z": separate}, "local": {"z": separate}}
    elif row[6] == "where no latent is shared":
        assert places == {"shared": dict.fromkeys("gz", "joint weight"), "local": {"z": separate}}
    elif row[6] == "joint weights":
        assert places["local"] == {"z": "joint weight"}
    else:
        assert places["local"] == {"z": "shared"}


def test_subsampling(entry):
    objective, row = entry
    shared = toys.hierarchical(num_data=5, subsample_size=2)
    local = toys.local(num_data=5, subsample_size=2)
    works = {"refused": (), "yes, where all latents are local": (local,)}.get(
        row[7], (local, shared)
    )
    for toy in (local, shared):
        if toy in works:
            objective.loss_and_grads(toy.model, toy.guide)
        else:
            with pytest.raises(ValueError, match=r"subsampled|does not follow"):
                objective.loss_and_grads(toy.model, toy.guide)


def model():
    with pyro.plate("data", 5):
        z = pyro.sample("z", dist.Normal(torch.zeros(5, dtype=torch.float64), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(5, dtype=torch.float64))


def guide():
    loc = pyro.param("loc", torch.zeros(5, dtype=torch.float64))
    with pyro.plate("data", 5):
        pyro.sample("z", dist.Normal(loc, 1.0))


def test_every_objective_is_captured(entry):
    objective, _ = entry
    loss = compiled(objective, backend="graph")
    assert loss.status(model, guide) == "captured"
    loss.loss_and_grads(model, guide)
    assert torch.isfinite(pyro.param("loc").unconstrained().grad).all()
