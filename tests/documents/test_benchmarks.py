"""The benchmarks compare like with like, in turn."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from tests.benchmarks import nuts_speed
from tests.benchmarks.contenders import contenders
from tests.benchmarks.harness import Contender, interleaved
from tests.benchmarks.problems import PROBLEMS, Problem

Density = Callable[..., Any]
Values = dict[str, np.ndarray]


@pytest.fixture
def log_density() -> Iterator[Density]:
    """From NumPyro's programs, arguments and values by site to a log density, in float64."""
    pytest.importorskip("numpyro", reason="NumPyro is not installed: pyro_elbo_lab[bench]")
    import jax
    from numpyro.infer.util import log_density

    with jax.enable_x64(True):
        yield lambda program, args, values: float(log_density(program, args, {}, values)[0])


def drawn(problem: Problem) -> tuple[poutine.Trace, poutine.Trace, Any, tuple]:
    """Runs of guide and model at the guide's draws, the guide and the arguments, in float64."""
    torch.set_default_dtype(torch.float64)
    args = tuple(x.double() if x.is_floating_point() else x for x in problem.data())
    guide = problem.make_guide(problem.model)
    of_guide = poutine.trace(guide).get_trace(*args)
    of_model = poutine.trace(poutine.replay(problem.model, of_guide)).get_trace(*args)
    return of_guide, of_model, guide, tuple(x.numpy() for x in args)


def values(run: poutine.Trace) -> Values:
    """Values of latents and parameters."""
    latents = [name for name in run.stochastic_nodes if not site_is_subsample(run.nodes[name])]
    names = [*latents, *run.param_nodes]
    return {name: run.nodes[name]["value"].detach().numpy() for name in names}


def weights(encoder: Any) -> Values:
    """The encoder's parameters by NumPyro's names."""
    layers = {"hidden": encoder.hidden[0], "loc": encoder.loc, "scale": encoder.log_scale}
    arrays = {}
    for name, layer in layers.items():
        arrays[f"encoder_{name}_weight"] = layer.weight.detach().numpy().T
        arrays[f"encoder_{name}_bias"] = layer.bias.detach().numpy()
    return arrays


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=list(PROBLEMS))
def test_numpyro_has_the_same_density(problem: Problem, log_density: Density) -> None:
    from tests.benchmarks.numpyro_models import MODELS

    _, run, _, args = drawn(problem)
    density = log_density(MODELS[problem.name], args, values(run))
    assert density == pytest.approx(run.log_prob_sum().item(), rel=1e-9)


def test_numpyro_has_the_same_encoder(log_density: Density) -> None:
    from tests.benchmarks.numpyro_models import encoder

    run, _, guide, args = drawn(PROBLEMS["VAE"])
    density = log_density(encoder, args, weights(guide) | {"z": values(run)["z"]})
    assert density == pytest.approx(run.log_prob_sum().item(), rel=1e-9)


def test_contenders_take_turns() -> None:
    bursts: list[str] = []

    def contender(name: str) -> Contender:
        return Contender(name, lambda num_steps: bursts.append(name))

    contenders = [contender(name) for name in "abc"]
    times = interleaved(contenders, rounds=4)
    assert bursts[-12:] == list("abcbcacababc")
    assert {name: x.shape for name, x in times.items()} == dict.fromkeys("abc", (4,))


@pytest.mark.parametrize("num_particles", [1, 4])
def test_each_contender_takes_steps(num_particles: int) -> None:
    numpyro = importlib.util.find_spec("numpyro") is not None
    for contender in contenders(PROBLEMS["eight schools"], num_particles, "cpu", numpyro):
        assert (contender.run(5) or 5) >= 5, contender.name


def test_z_is_in_standard_errors_of_the_difference() -> None:
    x = np.random.default_rng(0).normal(size=(4, 1000))
    error = x.std() / x.size**0.5 * 2**0.5  # of the difference of two such means
    moved = {"mu[]": x, "tau[]": x + 3 * error}
    assert nuts_speed.largest_z({"mu[]": x, "tau[]": x}, moved) == pytest.approx(3, rel=0.1)
