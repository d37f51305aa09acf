"""Compiled densities are the model's, their draws the same on every machine, and what cannot be
compiled runs eagerly and says so."""

import _thread
import ctypes
import math
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import nutpie
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from models import eight_schools
from pyro_elbo_lab.compilation.capture.guard import CaptureError
from pyro_elbo_lab.inference.nuts import chains, density
from pyro_elbo_lab.inference.nuts.c_density import EntryPoint
from pyro_elbo_lab.inference.nuts.density import CompiledDensity, compare, compile_density
from pyro_elbo_lab.inference.nuts.nuts import nuts
from pyro_elbo_lab.inference.nuts.potential import Potential, isolated, logp_and_gradient, prepare
from tests.support.compilers import needs_compiler

Model = Callable[..., Any]

pytestmark = needs_compiler

QUICK: dict[str, Any] = {"num_chains": 2, "num_warmup": 200, "num_samples": 500, "progress": False}

X = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)


def gaussian_process(x: Tensor) -> None:
    length = pyro.sample("length", dist.LogNormal(x.new_zeros(()), 0.5))
    noise = pyro.sample("noise", dist.HalfNormal(x.new_ones(())))
    distance = (x[:, None] - x) / length
    covariance = (-0.5 * distance**2).exp() + (noise**2 + 1e-6) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(x), covariance), obs=x.sin())


def constrained() -> None:
    factor = pyro.sample("factor", dist.LKJCholesky(3, torch.tensor(2.0)))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    pyro.sample("y", dist.MultivariateNormal(share, scale_tril=factor), obs=torch.ones(3))


def mixture(x: Tensor) -> None:
    with pyro.plate("component", 2):
        loc = pyro.sample("loc", dist.Normal(x.new_tensor([-1.0, 1.0]), 1.0))
    with pyro.plate("data", len(x)):
        which = pyro.sample("which", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[which.long()], 0.5), obs=x)


def normal(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def branches(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    if z > 0:
        z = 2 * z
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def out_of_sight(z: Tensor) -> float:
    """A number read in a way that no tracing can see."""
    return ctypes.c_double.from_address(z.data_ptr()).value


def reads_memory(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    shift = math.tanh(out_of_sight(z))
    pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)


def compiled(model: Model, *args: Any) -> tuple[Potential, CompiledDensity]:
    potential = prepare(model, args, {})
    return potential, compile_density(potential)


def points(potential: Potential) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.normal(size=potential.size, scale=scale) for scale in (0.1, 1.0, 2.0, 3.0)]


@pytest.mark.parametrize(
    "model, args",
    [
        (eight_schools.model, eight_schools.data()),
        (gaussian_process, (X,)),
        (constrained, ()),
        (mixture, (X,)),
    ],
)
def test_the_compiled_density_is_the_models(model: Model, args: tuple) -> None:
    with isolated(), pyro.validation_enabled(False):
        potential, found = compiled(model, *args)
        eager = logp_and_gradient(potential)
        for x in points(potential):
            logp, gradient = eager(x)
            assert found(x)[0] == pytest.approx(logp, rel=1e-9, abs=1e-9)
            np.testing.assert_allclose(found(x)[1], gradient, rtol=1e-9, atol=1e-9)


def nearly_singular(x: Tensor) -> None:
    length = pyro.sample("length", dist.LogNormal(x.new_zeros(()), 0.5))
    covariance = (-0.5 * ((x[:, None] - x) / length) ** 2).exp() + 1e-9 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(x), covariance), obs=x.sin())


def test_what_rounding_does_to_the_model_is_no_difference() -> None:
    with isolated(), pyro.validation_enabled(False):
        potential, found = compiled(nearly_singular, torch.linspace(0.0, 1.0, 40))
        logp, _ = logp_and_gradient(potential)(np.zeros(1))
        assert 0 < abs(found(np.zeros(1))[0] - logp) < 1e-3 * abs(logp)


@pytest.mark.parametrize("of_logp, of_gradient", [(1e-9, 0.0), (0.0, 1e-9), (np.nan, 0.0)])
def test_small_differences_are_found(of_logp: float, of_gradient: float) -> None:
    with isolated():
        potential = prepare(eight_schools.model, eight_schools.data(), {})
        eager = logp_and_gradient(potential)
        compare(eager, potential, points(potential))

        def off(x: np.ndarray) -> tuple[float, np.ndarray]:
            logp, gradient = eager(x)
            return logp * (1 + of_logp), gradient * (1 + of_gradient)

        with pytest.raises(CaptureError, match="the captured density is"):
            compare(off, potential, points(potential))


def call(entry: EntryPoint, x: np.ndarray) -> tuple[int, float, np.ndarray]:
    pointer = ctypes.POINTER(ctypes.c_double)
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_size_t, pointer, pointer, pointer, ctypes.c_void_p
    )
    logp, gradient = ctypes.c_double(), np.empty_like(x)
    pointers = x.ctypes.data_as(pointer), gradient.ctypes.data_as(pointer), ctypes.pointer(logp)
    return kind(entry.address)(x.size, *pointers, entry.data), logp.value, gradient


def test_threads_in_c_get_the_same_density() -> None:
    """More threads than cores, more calls than contexts."""
    with isolated():
        potential, found = compiled(eight_schools.model, *eight_schools.data())
    entry = EntryPoint(found, 2)
    xs = points(potential)
    expected = [call(entry, x) for x in xs]
    for x, (code, logp, gradient) in zip(xs, expected, strict=True):
        assert code == 0
        assert logp == found(x)[0]
        np.testing.assert_array_equal(gradient, found(x)[1])
    wrong = []

    def work() -> None:
        for _ in range(500):
            for x, (_, logp, gradient) in zip(xs, expected, strict=True):
                _, again, gradient_again = call(entry, x)
                if again != logp or (gradient != gradient_again).any():
                    wrong.append(again)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    entry.stop()
    assert call(entry, xs[0])[0] == -1


def sometimes_singular() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    factor = torch.linalg.cholesky(torch.eye(2) * (1.5 - z))
    pyro.factor("f", factor.diagonal().log().sum() * 0)


def test_a_singular_matrix_is_no_density() -> None:
    with isolated():
        _, found = compiled(sometimes_singular)
        entry = EntryPoint(found, 1)
        assert np.isnan(found(np.array([2.0]))[0])
        assert call(entry, np.array([2.0]))[0] == 1
        assert entry.failure is None
        assert found(np.array([1.0]))[0] == pytest.approx(-0.5 - 0.5 * np.log(2 * np.pi))
        assert call(entry, np.array([1.0]))[0] == 0


def test_a_density_may_be_nan_somewhere() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", (2.5 - z).log())

    tree = nuts(model, **QUICK)
    assert tree.attrs["density"] == "compiled"
    assert float(tree["posterior"]["z"].max()) < 2.5


def test_an_infinite_gradient_is_an_error_in_c() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", z.abs().sqrt())

    with isolated():
        _, found = compiled(model)
    entry = EntryPoint(found, 1)
    assert np.isfinite(found(np.zeros(1))[0]) and np.isnan(found(np.zeros(1))[1])
    assert call(entry, np.zeros(1))[0] == 1
    assert call(entry, np.array([2.0]))[0] == 0


def draws(monkeypatch: pytest.MonkeyPatch, num_cores: int) -> np.ndarray:
    monkeypatch.setattr(chains, "_num_cores", lambda: num_cores)
    tree = nuts(eight_schools.model, *eight_schools.data(), **{**QUICK, "num_chains": 3})
    assert tree.attrs["density"] == "compiled"
    return tree["posterior"]["theta"].to_numpy()


def test_draws_do_not_depend_on_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    one = draws(monkeypatch, 1)
    np.testing.assert_array_equal(draws(monkeypatch, 2), one)
    np.testing.assert_array_equal(draws(monkeypatch, 3), one)


@pytest.mark.parametrize("name", ["LogpFunc", "ExpandFunc", "PyMcModel", "__version__"])
def test_another_nutpie_gives_the_same_draws(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected = draws(monkeypatch, 2)

    def refuse(*args: Any) -> None:
        raise TypeError("other arguments")

    if name == "__version__":
        monkeypatch.setattr(nutpie, "__version__", "0.17.0")
    else:
        monkeypatch.setattr(nutpie._lib, name, refuse)
    np.testing.assert_array_equal(draws(monkeypatch, 2), expected)


def memory_beyond_ten(x: Tensor) -> None:
    """Elsewhere than the chains start."""
    z = pyro.sample("z", dist.Normal(15.0, 1.0))
    shift = max(out_of_sight(z), 10.0)
    pyro.sample("x", dist.Normal(z + shift, 10.0), obs=x)


def no_compiler(*args: Any) -> None:
    raise RuntimeError("g++ was not found\nand much more")


@pytest.mark.parametrize(
    "model, settings, reason",
    [
        (branches, {}, r"depends on a tensor's values \(test_density.py, line \d+: if z > 0:\)"),
        (reads_memory, {}, r"the captured density is .* where the model's is"),
        (memory_beyond_ten, {}, r"the captured density is .* where the model's is"),
        (normal, {"MOST_NODES": 10}, r"the graph has \d+ operators .* at most 10 are compiled"),
        (normal, {"compile_graph": no_compiler}, r"it could not be compiled: g.. was not found"),
    ],
)
def test_what_is_no_graph_runs_eagerly_and_says_so(
    model: Model, settings: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setattr(density, name, value)
    with pytest.warns(UserWarning, match=f"NUTS runs the model eagerly.*{reason}") as caught:
        tree = nuts(model, torch.tensor(1.0), **QUICK)
    assert len([w for w in caught if "eagerly" in str(w.message)]) == 1
    assert caught[0].filename == __file__
    assert re.match(f"eager: .*{reason}", tree.attrs["density"])
    assert tree.attrs["compile_seconds"] == 0
    last = tree["posterior"]["z"].to_numpy()[:, -1]
    with isolated():
        potential = prepare(model, (torch.tensor(1.0),), {})
        expected = [logp_and_gradient(potential)(x[None])[0] for x in last]
    np.testing.assert_allclose(tree["sample_stats"]["lp"].to_numpy()[:, -1], expected, rtol=1e-9)


def test_ctrl_c_stops_chains_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(potential: Potential, seed: int) -> np.ndarray:
        threading.Timer(0.2, _thread.interrupt_main).start()
        return np.ones(1)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(chains, "starting_point", start)
        nuts(normal, torch.tensor(1.0), **{**QUICK, "num_chains": 1, "num_samples": 20_000_000})
    assert torch.get_default_dtype() == torch.float32
    tree = nuts(normal, torch.tensor(1.0), **QUICK)
    assert tree.attrs["density"] == "compiled" and tree.attrs["reliable"]
