"""What may be a reference, and whether it can be relied on."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

from pyro_elbo_lab.inference.nuts import nuts
from pyro_elbo_lab.trust.comparison.compare import compare
from tests.support.planted import normal, standard_normal, vector


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def model() -> None:
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("site", 2):
        pyro.sample("theta", dist.Normal(0.0, 1.0))


def test_a_finished_mcmc_of_pyro() -> None:
    mcmc = MCMC(NUTS(model), num_samples=300, warmup_steps=200, disable_progbar=True)
    mcmc.run()
    comparison = compare({"q": normal(1)}, mcmc)
    assert comparison.table.loc["q"].index.tolist() == ["mu", "theta[0]", "theta[1]"]
    samples = mcmc.get_samples()["theta"].numpy()
    np.testing.assert_array_equal(comparison.draws("theta[1]")["reference"], samples[:, 1])
    divergences = len(mcmc.diagnostics()["divergences"]["chain 0"])
    assert int(comparison.reference["sample_stats/diverging"].sum()) == divergences
    assert "R-hat takes at least 2 chains" in comparison.reference_note


def test_divergences_of_an_mcmc_are_kept(rng: np.random.Generator) -> None:
    class Finished:
        def get_samples(self, group_by_chain: bool) -> dict[str, torch.Tensor]:
            return {"mu": torch.from_numpy(rng.normal(size=(2, 1000)))}

        def diagnostics(self) -> dict[str, Any]:
            return {"divergences": {"chain 0": list(range(30)), "chain 1": [5]}}

    comparison = compare({"q": normal(1)}, Finished())
    assert not comparison.reference_reliable
    assert "31 of 2000 transitions diverged" in comparison.reference_note
    diverging = np.asarray(comparison.reference["sample_stats/diverging"])
    assert diverging[0, :30].all() and diverging[1, 5] and diverging.sum() == 31


def test_an_mcmc_of_numpyro() -> None:
    class Finished:
        def get_samples(self, group_by_chain: bool) -> dict[str, np.ndarray]:
            return {"mu": np.random.default_rng(0).normal(size=(2, 1000))}

        def get_extra_fields(self, group_by_chain: bool) -> dict[str, np.ndarray]:
            return {"diverging": np.arange(2000).reshape(2, 1000) < 7}

    note = compare({"q": normal(1)}, Finished()).reference_note
    assert note.startswith("reliable") and "7 of 2000 transitions diverged" in note


def test_exact_draws(rng: np.random.Generator) -> None:
    draws = {"mu": rng.normal(size=(1, 4000)), "theta": torch.zeros(1, 4000, 2).normal_()}
    comparison = compare({"q": normal(1)}, draws)
    assert comparison.findings["q"].kind == "good"
    assert comparison.reference_note == "exact draws, taken as such."
    with pytest.raises(
        ValueError, match=r"'mu' of 'reference' has shape \(4000,\), expected draws"
    ):
        compare({"q": normal(1)}, {"mu": rng.normal(size=4000)})


def test_several_references_are_compared_with_the_first(rng: np.random.Generator) -> None:
    references = {
        "nuts": standard_normal(0),
        "exact": {"mu": rng.normal(size=(1, 4000)) + 0.5},
    }
    comparison = compare({"q": normal(1)}, references)
    assert list(comparison.findings) == ["q", "exact"]
    assert comparison.findings["q"].kind == "good"
    assert comparison.findings["exact"].kind == "biased"
    assert comparison.reference is references["nuts"]
    with pytest.raises(ValueError, match="'q' names both"):
        compare({"q": normal(1)}, {"nuts": standard_normal(0), "q": standard_normal(1)})


def test_what_is_no_reference_is_refused() -> None:
    with pytest.raises(TypeError, match="'reference' is a float; expected an ArviZ DataTree"):
        compare({"q": normal(1)}, 3.0)


def test_trees_without_a_judgement_are_judged(rng: np.random.Generator) -> None:
    z = rng.normal(size=(4, 1000, 3))
    q = vector(rng.normal(size=(1, 1000, 3)))
    assert compare({"q": q}, vector(z)).reference_note.startswith("reliable: R-hat is at most 1.0")
    z[1, :, 2] += 0.5
    wrong_place = compare({"q": q}, vector(z))
    assert "R-hat of x[2] is 1.0" in wrong_place.reference_note
    assert not wrong_place.reference_reliable
    z = rng.normal(size=(4, 1000, 3))
    z[1, :, 0] *= 2
    assert "R-hat of x[0] is 1." in compare({"q": q}, vector(z)).reference_note


def test_short_chains_are_no_reference_for_want_of_draws(rng: np.random.Generator) -> None:
    """Whose R-hat, of 200 independent parameters, says little: see `nuts`."""
    draws = vector(rng.normal(size=(4, 50, 200)))
    comparison = compare({"q": draws}, draws)
    assert not comparison.reference_reliable
    assert "(at least 400 is good)" in comparison.reference_note
    exact = compare({"q": draws}, {"x": draws["posterior"]["x"].values})
    assert exact.reference_reliable


@pytest.mark.parametrize(
    "spoil", ["good", "shifted", "wide", "sticky", "short", "diverging", "one"]
)
def test_compare_and_nuts_judge_alike(spoil: str, rng: np.random.Generator) -> None:
    """The same draws with the judgement of `nuts`, and without one."""
    z = rng.normal(size=(4, 1000, 3))
    diverging = np.zeros((4, 1000), bool)
    if spoil == "shifted":
        z[1, :, 2] += 0.5
    if spoil == "wide":
        z[1, :, 2] *= 1.5
    if spoil == "sticky":
        z[..., 0] = np.repeat(z[:, ::20, 0], 20, axis=1)
    if spoil == "short":
        z, diverging = z[:, :80], diverging[:, :80]
    if spoil == "diverging":
        diverging[0, :41] = True
    if spoil == "one":
        z, diverging = z[:1], diverging[:1]
    judged = nuts.judge({"x": z}, diverging)
    comparison = compare(
        {"q": vector(rng.normal(size=(1, 1000, 3)))}, vector(z, diverging=diverging)
    )
    assert comparison.reference_note == judged["reliability"]
    assert comparison.reference_reliable == bool(judged["reliable"]) == (spoil == "good")


def test_an_approximation_may_be_a_mapping_of_draws() -> None:
    rng = np.random.default_rng(0)
    exact = {"mu": rng.normal(size=(4, 1000))}
    comparison = compare({"narrow": {"mu": rng.normal(scale=0.5, size=(1, 4000))}}, exact)
    assert comparison.findings["narrow"].kind == "under-dispersed"
    with pytest.raises(TypeError, match="'narrow' is a ndarray; expected an ArviZ DataTree"):
        compare({"narrow": np.zeros((4, 1000))}, exact)
