"""A version of PyTorch that lacks a private name costs speed, and nothing else."""

import ast

import pytest

from pyro_elbo_lab.compilation.native.internals import PRIVATE_NAMES
from tests.support.processes import printed

PROGRAM = """
import warnings
import numpy as np, pyro, pyro.distributions as dist, torch
from pyro.infer.autoguide import AutoNormal
from pyro_elbo_lab import StandardELBO, fit
from pyro_elbo_lab.compilation.native import internals
if {missing!r}:
    internals.PRIVATE_NAMES[{missing!r}] = "torch.renamed"
x = torch.linspace(-1.0, 2.0, 30)
def model():
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", 30):
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    quick = dict(num_steps=60, progress=False, seed=1)
    result = fit(model, AutoNormal(model), objective=StandardELBO(), compile={compile}, **quick)
said = [str(w.message) for w in caught if "PyTorch" in str(w.message)]
print([result.compilation.split(":")[0], said, len(caught), result.losses.tolist()])
"""


def fitted(missing: str, compile: bool = True) -> tuple[str, list[str], int, list[float]]:
    """How it was compiled, what was said of PyTorch, the number of warnings, and the losses."""
    output = printed(PROGRAM.format(missing=missing, compile=compile))
    return tuple(ast.literal_eval(output.splitlines()[-1]))


@pytest.fixture(scope="module")
def losses() -> dict[bool, list[float]]:
    """Of a fit by a graph, and of one step by step, which draws numbers in another order."""
    how, said, _, by_graph = fitted("")
    assert how == "compiled" and said == []
    return {True: by_graph, False: fitted("", compile=False)[3]}


UNUSED = {"_aoti", "disable_proxy_modes_tracing"}
"""This program needs none: no operator is called from C, and no number is read while it is
captured."""


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_without_a_private_name_a_fit_gives_the_same_and_says_why_it_is_slow(
    name: str, losses: dict[bool, list[float]]
) -> None:
    how, said, number, found = fitted(name)
    assert found == pytest.approx(losses[how == "compiled"], rel=1e-4)
    assert (how == "compiled") == (name != "make_fx")
    assert number == (name not in UNUSED)
    assert name in UNUSED or f"has no torch.renamed.{name}" in said[0]
