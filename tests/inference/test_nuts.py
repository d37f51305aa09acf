"""NUTS agrees with known posteriors, refuses what it gets wrong, and says when not to trust it."""

import _thread
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

from models import eight_schools
from pyro_elbo_lab.inference.nuts.nuts import judge, nuts
from pyro_elbo_lab.inference.nuts.potential import constrain, isolated, prepare
from tests.support.tolerances import critical_value

Model = Callable[..., Any]

QUICK: dict[str, Any] = {
    "num_chains": 2,
    "num_warmup": 200,
    "num_samples": 500,
    "progress": False,
}


@pytest.fixture(scope="session")
def eight_schools_tree() -> xr.DataTree:
    """The one long run: 4 chains of 1000 + 4000, so that the MCSE of tau's sd is about 1.5 %."""
    return nuts(eight_schools.model, *eight_schools.data(), num_samples=4000, progress=False)


def mcse(draws: Any) -> np.ndarray:
    return np.squeeze(arviz_stats.mcse(draws).values)


def assert_mean(draws: Any, expected: Any) -> None:
    """The mean over chains and draws, with its Markov chain standard error."""
    error = np.abs(draws.mean(("chain", "draw")).values - np.asarray(expected))
    z = error / mcse(draws)
    assert np.all(z <= critical_value(z.size)), f"z = {z}"


def test_eight_schools_agrees_with_quadrature(eight_schools_tree: xr.DataTree) -> None:
    exact = eight_schools.exact(*eight_schools.data())
    for name, draws in eight_schools_tree["posterior"].data_vars.items():
        assert_mean(draws, exact["mean"][name])
        assert_mean((draws - exact["mean"][name].numpy()) ** 2, exact["sd"][name] ** 2)


def test_eight_schools_tree(eight_schools_tree: xr.DataTree) -> None:
    posterior, stats = eight_schools_tree["posterior"], eight_schools_tree["sample_stats"]
    assert {name: v.dims[2:] for name, v in posterior.data_vars.items()} == {
        "mu": (),
        "tau": (),
        "z": ("school",),
        "theta": ("school",),
    }
    assert dict(posterior.sizes) == {"chain": 4, "draw": 4000, "school": 8}
    xr.testing.assert_allclose(
        posterior["theta"], posterior["mu"] + posterior["tau"] * posterior["z"]
    )
    assert {v.dtype for v in posterior.data_vars.values()} == {np.dtype("float64")}
    assert {"diverging", "energy", "step_size", "tree_depth", "acceptance_rate", "lp"} <= set(
        stats.data_vars
    )
    np.testing.assert_array_equal(eight_schools_tree["observed_data"]["y"], eight_schools.data()[0])
    attrs = eight_schools_tree.attrs
    assert attrs["sampler"] == "nutpie" and attrs["seconds"] > 0
    assert attrs["reliable"] == 1 and attrs["reliability"].startswith("reliable: R-hat")
    assert attrs["divergences"] == int(stats["diverging"].sum())
    assert 1.0 <= attrs["r_hat_max"] <= 1.01
    assert attrs["ess_min"] >= 400
    r_hats = arviz_stats.rhat(posterior.to_dataset())
    assert attrs["r_hat_max"] == pytest.approx(max(float(v.max()) for v in r_hats.values()))


def test_lp_is_the_density_of_the_draws(eight_schools_tree: xr.DataTree) -> None:
    """In unconstrained space: the log joint plus log tau."""
    y, sigma = (tensor.double() for tensor in eight_schools.data())
    last = eight_schools_tree["posterior"].isel(chain=-1, draw=-1)
    values = {name: torch.tensor(last[name].values) for name in ("mu", "tau", "z")}
    log_joint = poutine.trace(poutine.condition(eight_schools.model, values)).get_trace(y, sigma)
    lp = eight_schools_tree["sample_stats"]["lp"].isel(chain=-1, draw=-1)
    expected = log_joint.log_prob_sum() + values["tau"].log()
    assert float(lp) == pytest.approx(expected.item(), rel=1e-10)


def transformed(y: Tensor) -> None:
    """One latent of each kind of support; no data but one value of each."""
    rate = pyro.sample("rate", dist.Gamma(y.new_full((), 3.0), 2.0))
    share = pyro.sample("share", dist.Dirichlet(y.new_tensor([2.0, 3.0, 5.0])))
    with pyro.plate("item", 2):
        low = pyro.sample("low", dist.Uniform(y.new_full((), -1.0), 2.0))
    pyro.deterministic("sum", share.sum(-1))
    pyro.deterministic("ordered", torch.stack([low.min(-1).values, low.max(-1).values], -1))
    pyro.sample("y", dist.Exponential(rate), obs=y)


@pytest.mark.parametrize("sampler", ["nutpie", "pyro"])
def test_samplers_agree_with_exact_moments(sampler: str) -> None:
    tree = nuts(transformed, torch.tensor(0.5), sampler=sampler, **QUICK)
    posterior = tree["posterior"]
    assert_mean(posterior["rate"], 4.0 / 2.5)
    assert_mean(posterior["share"], [0.2, 0.3, 0.5])
    assert_mean(posterior["low"], [0.5, 0.5])
    assert_mean((posterior["low"] - 0.5) ** 2, [0.75, 0.75])
    assert posterior["low"].dims == ("chain", "draw", "item")
    np.testing.assert_allclose(posterior["sum"], 1.0)
    np.testing.assert_array_equal(posterior["ordered"], np.sort(posterior["low"], -1))
    assert tree.attrs["sampler"] == sampler
    assert {"diverging", "step_size"} <= set(tree["sample_stats"].data_vars)


def normal(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("sampler", ["nutpie", "pyro"])
def test_a_seed_fixes_the_draws(sampler: str) -> None:
    quick = {**QUICK, "num_warmup": 50, "num_samples": 20, "sampler": sampler}
    with pytest.warns(UserWarning, match="not reliable"):
        trees = [nuts(normal, torch.tensor(1.0), seed=seed, **quick) for seed in (1, 1, 2)]
    first, again, other = (tree["posterior"]["z"].to_numpy() for tree in trees)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[0] != first[1]).any()


def test_leaves_the_callers_state_alone() -> None:
    def model() -> None:
        loc = pyro.param("loc", torch.tensor(2.0))
        pyro.param("new", torch.tensor(1.0))
        pyro.sample("z", dist.Normal(loc, 1.0))

    loc = pyro.param("loc", torch.tensor(3.0))
    pyro.set_rng_seed(4)
    expected = torch.rand(()), np.random.rand()
    pyro.set_rng_seed(4)
    with poutine.trace() as outer:
        tree = nuts(model, **QUICK)
    assert (torch.rand(()), np.random.rand()) == expected
    assert torch.get_default_dtype() == torch.float32
    assert set(pyro.get_param_store()) == {"loc"}
    assert pyro.param("loc").dtype == torch.float32 and pyro.param("loc") == loc
    assert not outer.trace.nodes
    assert_mean(tree["posterior"]["z"], 3.0)


def test_arguments_become_float64_wherever_they_are() -> None:
    class Batch(NamedTuple):
        x: Tensor
        names: list[str]

    def model(batch: Batch, *, more: dict[str, Any]) -> None:
        assert batch.names == ["a"] and more["index"].dtype == torch.int64
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for tensor in (batch.x, more["scale"][0], z):
            assert tensor.dtype == torch.float64
        pyro.sample("x", dist.Normal(z, more["scale"][0]), obs=batch.x)

    more = {"scale": [torch.tensor(1.0)], "index": torch.tensor(3)}
    tree = nuts(model, Batch(torch.tensor(1.0), ["a"]), more=more, **QUICK)
    assert_mean(tree["posterior"]["z"], 0.5)
    assert tree["observed_data"]["x"].dtype == np.float64


def test_runs_on_the_device_of_the_data(device: torch.device, dtype: torch.dtype) -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    tree = nuts(model, torch.tensor(1.0, device=device, dtype=dtype), **QUICK)
    assert_mean(tree["posterior"]["z"], 0.5)


def test_discrete_latents_are_summed_out() -> None:
    def mixture(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        which = pyro.sample("which", dist.Bernoulli(0.3))
        shifted = pyro.deterministic("shifted", loc + 2 * which)
        pyro.sample("x", dist.Normal(shifted, 1.0), obs=x)

    tree = nuts(mixture, torch.tensor(2.0), **QUICK)
    assert set(tree["posterior"].data_vars) == {"loc"}
    evidence = dist.Normal(torch.tensor([0.0, 2.0]), 2**0.5).log_prob(torch.tensor(2.0)).exp()
    weights = torch.tensor([0.7, 0.3]) * evidence
    expected = (weights * torch.tensor([1.0, 0.0])).sum() / weights.sum()
    assert_mean(tree["posterior"]["loc"], expected)


def test_a_flat_prior_by_mask() -> None:
    """As the error about ImproperUniform advises."""

    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0).mask(False))
        pyro.sample("x", dist.Normal(loc, 2.0), obs=x)

    assert_mean(nuts(model, torch.tensor(9.0), **QUICK)["posterior"]["loc"], 9.0)


def replayed(model: Model) -> dict[str, np.ndarray]:
    with isolated():
        potential = prepare(model, (), {})
        draws = np.random.default_rng(0).normal(size=(2, 130, potential.size))
        return constrain(potential, draws)


def test_deterministic_sites_are_replayed_beneath_plates() -> None:
    runs = []

    def model() -> None:
        runs.append(1)
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("row", 4, dim=-2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("column", 5, dim=-1):
                b = pyro.sample("b", dist.Normal(0.0, 1.0))
                pyro.deterministic("ab", a * b, event_dim=0)
        pyro.deterministic("double", 2 * w, event_dim=1)
        pyro.deterministic("constant", torch.arange(2.0))

    values = replayed(model)
    assert len(runs) < 50  # for 260 draws
    assert values["a"].shape == (2, 130, 4, 1) and values["ab"].shape == (2, 130, 4, 5)
    np.testing.assert_allclose(values["ab"], values["a"] * values["b"])
    np.testing.assert_allclose(values["double"], 2 * values["w"])
    np.testing.assert_array_equal(values["constant"], np.broadcast_to([0.0, 1.0], (2, 130, 2)))


@pytest.mark.parametrize("function", [lambda w: w[0], lambda w: w - w.mean()])
def test_models_not_written_for_many_draws_are_replayed_one_by_one(
    function: Callable[[Tensor], Tensor],
) -> None:
    """Beneath an outer plate w[0] has another shape, and w.mean() is silently that of all draws."""

    def model() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        pyro.deterministic("entry", function(w))

    values = replayed(model)
    for index in np.ndindex(2, 130):
        expected = function(torch.tensor(values["w"][index]))
        np.testing.assert_allclose(values["entry"][index], expected)


def test_constrained_draws_keep_their_support() -> None:
    def model() -> None:
        pyro.sample("corr", dist.LKJCholesky(3, 1.0))

    factor = replayed(model)["corr"]
    np.testing.assert_allclose(np.square(factor).sum(-1), 1.0)
    np.testing.assert_array_equal(factor[..., 0, 1:], 0.0)


GOOD = np.random.default_rng(0).normal(size=(4, 500))
NO_DIVERGENCES = np.zeros((4, 500), bool)


def some_divergences(number: int) -> np.ndarray:
    diverging = NO_DIVERGENCES.copy()
    diverging.flat[:number] = True
    return diverging


@pytest.mark.parametrize(
    "posterior, diverging, complaint",
    [
        ({"z": GOOD}, NO_DIVERGENCES, None),
        ({"z": GOOD}, some_divergences(20), None),
        ({"z": GOOD}, some_divergences(21), "21 of 2000 transitions diverged (at most 1% is good)"),
        ({"a": GOOD, "z": GOOD + np.eye(4)[:, :1]}, NO_DIVERGENCES, "R-hat of z is 1."),
        ({"a": GOOD, "z": GOOD.cumsum(-1)}, NO_DIVERGENCES, "(at least 400 is good)"),
        ({"w": np.stack([GOOD, GOOD.cumsum(-1)], -1)}, NO_DIVERGENCES, "ESS of w[1] is"),
        ({"z": np.where(GOOD > 3, np.inf, GOOD)}, NO_DIVERGENCES, "draws are infinite or NaN"),
        ({"z": np.where(GOOD > 3, np.nan, GOOD)}, NO_DIVERGENCES, "draws are infinite or NaN"),
        ({"z": GOOD[:1]}, NO_DIVERGENCES[:1], "R-hat takes at least 2 chains"),
        ({"z": GOOD[:, :3]}, NO_DIVERGENCES[:, :3], "R-hat of z is nan"),
        ({"z": np.ones((4, 500))}, NO_DIVERGENCES, "R-hat of z is nan"),
        ({"a": np.ones((4, 500)), "z": GOOD}, NO_DIVERGENCES, None),
    ],
)
def test_judgement(
    posterior: dict[str, np.ndarray], diverging: np.ndarray, complaint: str | None
) -> None:
    verdict = judge(posterior, diverging)
    assert verdict["divergences"] == diverging.sum()
    assert verdict["reliable"] == (complaint is None)
    assert (complaint or "reliable: R-hat is at most 1.0") in verdict["reliability"]


def test_an_unreliable_run_warns_and_is_marked() -> None:
    """Chains that stay in the mode they start in."""

    def two_modes() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 20.0))
        pyro.factor("modes", torch.logaddexp(-((z - 10) ** 2), -((z + 10) ** 2)))

    with pytest.warns(UserWarning, match="The NUTS draws are not reliable: R-hat of z"):
        tree = nuts(two_modes, **{**QUICK, "num_chains": 4, "num_samples": 100})
    assert tree.attrs["reliable"] == 0


def no_latents() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


def improper() -> None:
    pyro.sample("slope", dist.ImproperUniform(constraints.real, (), ()))


def subsampled() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 10, subsample_size=3):
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3))


def subsampled_by_hand() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 10, subsample=torch.arange(3)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3))


def unbounded_discrete() -> None:
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    pyro.sample("count", dist.Poisson(rate))


def after_discrete() -> None:
    which = pyro.sample("which", dist.Bernoulli(0.5))
    pyro.sample("z", dist.Normal(which, 1.0))


def moving_support() -> None:
    end = pyro.sample("end", dist.Gamma(2.0, 1.0))
    pyro.sample("z", dist.Uniform(0.0, end))


def random_density() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.randn(()))


def changing_sites() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    if z > 0:
        pyro.sample("extra", dist.Normal(0.0, 1.0))


def nan_data() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("fine", dist.Normal(z, 1.0), obs=torch.tensor(0.0))
    pyro.sample("broken", dist.Normal(z, 1.0), obs=torch.tensor([0.0, torch.nan]))


def impossible_data() -> None:
    z = pyro.sample("z", dist.Beta(1.0, 1.0))
    pyro.sample("x", dist.Uniform(z, 2.0), obs=torch.tensor(3.0))


def unused_flat_latent() -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("idle", dist.Normal(0.0, 1.0).mask(False))


def outside_support() -> None:
    logits = pyro.sample("logits", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Bernoulli(logits=logits), obs=torch.tensor(2.0))


FIXED = torch.zeros(2, dtype=torch.float32)


def writes_to_float32() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    FIXED[:] = z
    pyro.sample("x", dist.Normal(FIXED, 1.0).to_event(1), obs=torch.zeros(2))


@pytest.mark.parametrize(
    "model, error, complaint",
    [
        (no_latents, ValueError, "no continuous latent site.*it has no latent sites"),
        (improper, ValueError, r"prior of 'slope' is ImproperUniform.*\.mask\(False\)"),
        (subsampled, ValueError, r"Plate 'data' of site 'x' is subsampled \(3 of 10\)"),
        (subsampled_by_hand, ValueError, r"Plate 'data' of site 'x' is subsampled \(3 of 10\)"),
        (unbounded_discrete, ValueError, r"'count' is discrete \(Poisson\)"),
        (after_discrete, ValueError, "'z' depends on a discrete latent"),
        (moving_support, ValueError, "support of 'z' depends on other latents"),
        (random_density, ValueError, "model is random beyond its latent sites"),
        (changing_sites, ValueError, r"\['extra'\] are sampled in some runs"),
        (nan_data, ValueError, r"one of them 'broken' has log density nan \(NaN among its"),
        (impossible_data, ValueError, "'x' has log density -inf"),
        (unused_flat_latent, ValueError, r"the gradient in 'idle' is -?0\.0"),
        (outside_support, ValueError, "(?s)at site 'x'.*within the support"),
        (writes_to_float32, TypeError, "writes to a float32 tensor of shape .2,. that it keeps"),
    ],
)
def test_models_that_nuts_would_get_wrong_are_refused(
    model: Model, error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        nuts(model, **QUICK)
    assert torch.get_default_dtype() == torch.float32


class Regression(PyroModule):
    """Its priors are float32 tensors, as they are built when the module is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor) -> None:
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_priors_of_pyro_sample() -> None:
    x, y = torch.randn(8, 2), torch.randn(8)
    tree = nuts(Regression(), x, y, **QUICK)
    design = torch.cat([x, torch.ones(8, 1)], 1).double()
    covariance = torch.linalg.inv(torch.eye(3) + design.T @ design)
    exact = covariance @ design.T @ y.double()
    assert_mean(tree["posterior"]["linear.weight"], exact[None, :2])
    assert_mean(tree["posterior"]["linear.bias"], exact[2:])
    assert "notes" not in tree.attrs
    assert tree["prior_predictive"]["y"].dtype == np.float64


def runs_eagerly(z: Tensor) -> None:
    """What no graph can hold."""
    if z > 100:
        raise AssertionError


@pytest.mark.parametrize("sampler", ["nutpie", "pyro"])
def test_an_error_while_sampling_is_the_models_own(sampler: str) -> None:
    runs = iter(range(1000))

    def model() -> None:
        if next(runs) > 100:
            raise KeyError("the model's own error")
        runs_eagerly(pyro.sample("z", dist.Normal(0.0, 1.0)))

    with pytest.raises(KeyError, match="the model's own error"):
        nuts(model, sampler=sampler, **QUICK)


def test_a_breakdown_of_nutpie_is_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of 0 at the start is one; `starting_point` avoids it."""

    def origin(potential: Any, seed: int) -> np.ndarray:
        return np.zeros(potential.size)

    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    monkeypatch.setattr("pyro_elbo_lab.inference.nuts.chains.starting_point", origin)
    with pytest.raises(RuntimeError, match=r"nutpie broke down: .*initial gradient"):
        nuts(model, **QUICK)


def test_ctrl_c_ends_the_run_and_the_next_one_is_sound() -> None:
    runs = []

    def model() -> None:
        runs.append(1)
        runs_eagerly(pyro.sample("z", dist.Normal(0.0, 1.0)))
        if len(runs) == 200:
            _thread.interrupt_main()

    with pytest.raises(KeyboardInterrupt):
        nuts(model, **{**QUICK, "num_samples": 100_000})
    assert torch.get_default_dtype() == torch.float32
    num_runs = len(runs)
    assert_mean(nuts(normal, torch.tensor(1.0), **QUICK)["posterior"]["z"], 0.5)
    assert len(runs) == num_runs


def test_singular_matrices_are_rejected_proposals() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        factor = torch.linalg.cholesky(torch.eye(2) * (1.5 - z))
        pyro.factor("f", factor.diagonal().log().sum() * 0)

    with pytest.warns(UserWarning, match="diverged"):
        tree = nuts(model, **{**QUICK, "num_warmup": 50})
    assert float(tree["posterior"]["z"].max()) < 1.5


@pytest.mark.parametrize(
    "keywords, complaint",
    [
        ({"sampler": "stan"}, "sampler must be one of ['nutpie', 'pyro'], got 'stan'"),
        ({"num_chains": 0}, "num_chains must be at least 1, got 0"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"num_warmup": -1}, "num_warmup must be at least 0, got -1"),
    ],
)
def test_wrong_settings_are_named(keywords: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        nuts(normal, torch.tensor(1.0), **keywords)


def test_the_tree_survives_netcdf(tmp_path: Path) -> None:
    tree = nuts(normal, torch.tensor(1.0), **QUICK)
    tree.to_netcdf(tmp_path / "reference.nc")
    with xr.open_datatree(tmp_path / "reference.nc") as loaded:
        xr.testing.assert_identical(loaded.load(), tree)
