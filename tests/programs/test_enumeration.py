"""Sums over the discrete sites of a model: what is summed, where it stands, what is refused."""

import math
from collections import OrderedDict
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.indexing import Vindex

from pyro_elbo_lab.inference.fitting.fit import fit
from pyro_elbo_lab.inference.trees.convert import from_guide
from pyro_elbo_lab.objectives.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.objectives.lower_bounds import StandardELBO
from pyro_elbo_lab.objectives.particles.layout import lay_out
from pyro_elbo_lab.programs.enumeration import LogSums, join
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.structure.analysis import analyze
from pyro_elbo_lab.programs.structure.factors import FactorKey
from pyro_elbo_lab.programs.structure.marks import hide_enumerated

PARALLEL = {"enumerate": "parallel"}
X = torch.tensor([-2.1, -1.7, 0.4, 2.3, 1.8])
HALF = torch.tensor([0.5, 0.5])


def nothing(*args):
    pass


def coin(name, **infer):
    return pyro.sample(name, dist.Categorical(HALF), infer={**PARALLEL, **infer})


def mixture(x=X):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(x)):
        c = coin("c")
        pyro.sample("x", dist.Normal(Vindex(loc)[..., c], 1.0), obs=x)


def packed(values, dims):
    term: Any = torch.as_tensor(values) + 0
    term._pyro_dims = dims
    return term


def marginal(structure):
    (key,) = structure.sums
    return key


def test_a_mixture_is_one_factor_in_the_plate():
    guide = AutoNormal(poutine.block(mixture, hide=["c"]))
    structure, sites, *_ = analyze(Pair(mixture, guide))
    key = marginal(structure)
    assert key == FactorKey("model", "c, x")
    assert structure.sums[key] == ("c", "x")
    assert structure.enumerated == ("c",)
    assert structure.plates[key] == {"data"}
    assert structure.reads[key] == {"loc_unconstrained"}
    density = sites[key]["fn"].log_density()
    loc = sites[FactorKey("guide", "loc")]["value"]
    expected = dist.Normal(loc, 1.0).log_prob(X[:, None]).logsumexp(-1) + math.log(0.5)
    torch.testing.assert_close(density, expected)


def test_config_enumerate_marks_the_model():
    @config_enumerate
    def marked():
        c = pyro.sample("c", dist.Bernoulli(0.25))
        pyro.sample("x", dist.Normal(c, 1.0), obs=torch.tensor(0.0))

    p = [dist.Normal(c, 1.0).log_prob(torch.tensor(0.0)).exp() for c in (0.0, 1.0)]
    assert StandardELBO().loss(marked, nothing) == pytest.approx(
        -math.log(0.75 * p[0] + 0.25 * p[1])
    )


def test_long_names_are_shortened():
    assert join(["a", "b"]) == "a, b"
    assert join([f"x_{i}" for i in range(20)]) == "x_0, ..., x_19 (20 sites)"


def test_sites_that_share_nothing_are_factors_of_their_own():
    def two():
        for name in ("a", "b"):
            c = coin(name)
            pyro.sample(f"{name}_x", dist.Normal(c.float(), 1.0), obs=X[0])
        pyro.sample("alone", dist.Normal(0.0, 1.0), obs=X[1])
        coin("idle")

    structure, *_ = analyze(Pair(two, nothing))
    assert [key.name for key in structure.reads] == ["a, a_x", "b, b_x", "alone", "idle"]


def test_a_site_that_reads_two_variables_joins_them():
    def joined():
        a, b = coin("a"), coin("b")
        pyro.sample("x", dist.Normal((a + 2 * b).float(), 1.0), obs=X[0])

    structure, *_ = analyze(Pair(joined, nothing))
    assert marginal(structure).name == "a, b, x"
    densities = dist.Normal(torch.arange(4.0), 1.0).log_prob(X[0])
    expected = densities.logsumexp(0) - math.log(4)
    assert StandardELBO().loss(joined, nothing) == pytest.approx(-expected.item())


def test_a_variable_of_one_value():
    def single():
        with pyro.plate("data", 5):
            c = pyro.sample("c", dist.Categorical(torch.ones(1)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(c.float(), 1.0), obs=X)

    expected = dist.Normal(0.0, 1.0).log_prob(X).sum().item()
    assert StandardELBO(3, vectorize_particles=True).loss(single, nothing) == pytest.approx(
        -expected
    )


def test_global_variable_of_two_plates_that_disagree():
    """Each plate rules out the other's value: Pyro's own sum underflows in float32."""
    y = torch.full((40,), 5.0)

    def model():
        c = coin("c")
        for name, sign in (("left", -1.0), ("right", 1.0)):
            with pyro.plate(name, len(y)):
                pyro.sample(f"{name}_y", dist.Normal(10 * sign * (c - 0.5), 1.0), obs=y)

    def log_p(loc):
        return dist.Normal(loc, 1.0).log_prob(y).sum()

    expected = log_p(5.0) + log_p(-5.0)
    assert StandardELBO().loss(model, nothing) == pytest.approx(-expected.item(), rel=1e-5)
    terms = [packed([0.0, -2000.0], "a"), packed([-2000.0, 0.0], "a")]
    pyros = contract_tensor_tree(OrderedDict({frozenset(): terms}), {"a"})
    assert pyros[frozenset()][0] < -1e30 or not torch.isfinite(pyros[frozenset()][0])


def test_impossible_transitions_have_finite_gradients():
    logits = torch.tensor([[0.0, -math.inf, 0.0], [0.0, 0.0, -math.inf], [0.0, 0.0, 0.0]])
    free: Any = torch.zeros(3, 3, requires_grad=True)

    def model():
        x = torch.tensor(0)
        for t in pyro.markov(range(4)):
            x = pyro.sample(f"x_{t}", dist.Categorical(logits=(logits + free)[x]), infer=PARALLEL)
            pyro.sample(f"y_{t}", dist.Normal(x.float(), 1.0), obs=X[t])

    with pyro.validation_enabled(False):
        StandardELBO().loss_and_grads(model, nothing)
    assert free.grad.isfinite().all()
    a: Any = torch.tensor([[-math.inf, 0.0], [-math.inf, 1.0]], requires_grad=True)
    summed = LogSums().sumproduct([packed(a, "ab")], {"a"})
    assert summed[0] == -math.inf
    summed.exp().sum().backward()
    assert a.grad.isfinite().all()


def test_explain_names_what_is_summed_out():
    guide = AutoNormal(poutine.block(mixture, hide=["c"]))
    notes = StandardELBO().explain(mixture, guide).notes
    assert "summed out exactly: c (factor 'c, x' of the model)" in notes
    assert StandardELBO().explain(lambda: None, nothing).notes == (
        "plates: the bound is linear in the log-weights",
    )


def local(subsample_size=None):
    with pyro.plate("data", 5, subsample_size=subsample_size) as index:
        c = coin("c")
        z = pyro.sample("z", dist.Normal(2.0 * c - 1.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=X[index])


def local_guide(subsample_size=None):
    with pyro.plate("data", 5, subsample_size=subsample_size) as index:
        pyro.sample("z", dist.Normal(X[index], 0.6))


def test_layout_of_a_local_latent_whose_prior_is_summed():
    structure, sites, *_ = analyze(Pair(local, local_guide))
    layout = lay_out(structure, "auto")
    assert layout.cells == {
        FactorKey("model", "c, z"): {"data"},
        FactorKey("model", "x"): {"data"},
        FactorKey("guide", "z"): {"data"},
    }
    assert structure.parents == {"c": set(), "z": set()}
    assert set(sites) == set(structure.reads)


def test_no_exact_kl_for_a_prior_within_a_sum():
    row = AnalyticKLELBO().explain(local, local_guide)["z"]
    assert row.kl == "exact entropy"
    assert "sum over discrete sites takes in the prior of 'z'" in row.why
    guide = AutoNormal(poutine.block(mixture, hide=["c"]))
    assert AnalyticKLELBO().explain(mixture, guide)["loc_unconstrained"].kl == "exact KL"


def test_delta_rows_are_kept_where_the_prior_is_summed():
    def guide():
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Delta(X))

    row = StandardELBO().explain(local, guide)["z"]
    assert row.distribution == "Delta"


def test_sampled_in_the_guide_is_not_enumerated():
    def guide(x=X):
        pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(HALF))

    structure, *_ = analyze(Pair(mixture, guide))
    assert structure.enumerated == ()
    assert not structure.sums
    assert structure.latents["c"].plates == {"data"}


def test_one_site_is_sampled_and_another_summed():
    def model():
        a, b = coin("a"), coin("b")
        pyro.sample("x", dist.Normal((a + 2 * b).float(), 1.0), obs=X[0])

    def guide():
        pyro.sample("a", dist.Categorical(torch.tensor([0.0, 1.0])))

    structure, *_ = analyze(Pair(model, guide))
    assert structure.enumerated == ("b",)
    assert structure.reads[marginal(structure)] == {"a"}
    log_p = dist.Normal(torch.tensor([1.0, 3.0]), 1.0).log_prob(X[0]).logsumexp(0)
    expected = math.log(4) - log_p.item()  # a = 1 has prior 1/2, log q = 0
    for objective in (StandardELBO(), StandardELBO(2, vectorize_particles=True)):
        assert objective.loss(model, guide) == pytest.approx(expected, rel=1e-5)


def test_hidden_from_a_guide():
    guide = AutoNormal(hide_enumerated(mixture))
    guide(X)
    assert set(guide.median(X)) == {"loc"}


def test_marks_on_observed_sites_mean_nothing():
    def observed():
        pyro.sample("c", dist.Bernoulli(0.25), obs=torch.tensor(1.0), infer=PARALLEL)

    assert StandardELBO().loss(observed, nothing) == pytest.approx(math.log(4))


def test_a_variable_may_be_observed_at_some_calls():
    def model(label=None):
        c = pyro.sample("c", dist.Bernoulli(0.25), obs=label, infer=PARALLEL)
        pyro.sample("x", dist.Normal(c, 1.0), obs=torch.tensor(0.5))

    objective = StandardELBO()
    likelihood = dist.Normal(0.5, 1.0).log_prob(torch.tensor(0.0)).item()
    for _ in range(2):
        assert objective.loss(model, nothing) == pytest.approx(-likelihood)
        observed = objective.loss(model, nothing, torch.tensor(1.0))
        assert observed == pytest.approx(math.log(4) - likelihood)


def refusal(model, guide=nothing, error=ValueError):
    with pytest.raises(error) as caught:
        StandardELBO().loss(model, guide)
    return str(caught.value)


def test_sequential_enumeration_of_the_model_is_refused():
    message = refusal(lambda: coin("c", enumerate="sequential"), error=NotImplementedError)
    assert "'c'" in message
    assert "'sequential'" in message


def test_num_samples_is_refused():
    message = refusal(lambda: coin("c", num_samples=3), error=NotImplementedError)
    assert "'c' of the model asks for num_samples=3" in message


@pytest.mark.parametrize(
    "unlistable",
    [dist.Poisson(2.0), dist.Normal(0.0, 1.0), dist.Bernoulli(HALF).to_event(1)],
    ids=["poisson", "normal", "event"],
)
def test_values_that_cannot_be_listed(unlistable):
    message = refusal(lambda: pyro.sample("k", unlistable, infer=PARALLEL))
    assert "Site 'k' of the model" in message
    assert "cannot be listed" in message


def test_a_messenger_guide_is_refused():
    guide = AutoNormalMessenger(poutine.block(mixture, hide=["c"]))
    message = refusal(mixture, guide, NotImplementedError)
    assert "'c'" in message
    assert "AutoNormalMessenger" in message


def test_sites_of_a_sum_need_one_scale():
    def model():
        c = coin("c")
        with poutine.scale(scale=3.0):
            pyro.sample("x", dist.Normal(c.float(), 1.0), obs=X[0])

    message = refusal(model)
    assert "'c' and 'x'" in message
    assert "1 and 3" in message


def test_a_subsampled_plate_within_a_sum():
    def model():
        c = coin("c")
        with pyro.plate("data", 5, subsample_size=2) as index:
            pyro.sample("x", dist.Normal(c.float(), 1.0), obs=X[index])

    message = refusal(model)
    assert "'c' and 'x'" in message
    assert "1 and 2.5" in message


def test_a_site_outside_the_plate_of_a_variable():
    def model():
        with pyro.plate("data", 5):
            c = coin("c")
        pyro.sample("total", dist.Normal(c.float().sum(-1), 1.0), obs=X[0])

    message = refusal(model)
    assert "Site 'total' lies outside plate 'data' but depends on 'c'" in message


def test_plates_that_cross():
    def model():
        rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1)
        with rows:
            a = coin("a")
        with columns:
            b = coin("b")
        with rows, columns:
            pyro.sample("x", dist.Normal((a + b).float(), 1.0), obs=torch.zeros(2, 3))

    message = refusal(model, error=NotImplementedError)
    assert "'a', 'b'" in message
    assert "'rows', 'columns'" in message


def test_a_dependency_out_of_the_scope_of_markov():
    def model(history):
        xs = [torch.tensor(0), torch.tensor(0)]
        for t in pyro.markov(range(4), history=history):
            xs.append(coin(f"x_{t}"))
            loc = (xs[-1] + 2 * xs[-3]).float()
            pyro.sample(f"y_{t}", dist.Normal(loc, 1.0), obs=X[t])

    message = refusal(partial(model, 1))
    assert "'y_2' depends on 'x_0'" in message
    assert "history=" in message
    states = torch.cartesian_prod(*[torch.arange(2.0)] * 4)  # (16, 4)
    locs = states + 2 * torch.nn.functional.pad(states, (2, 0))[:, :4]
    expected = dist.Normal(locs, 1.0).log_prob(X[:4]).sum(-1).logsumexp(0) - math.log(16)
    assert StandardELBO().loss(partial(model, 2), nothing) == pytest.approx(-expected.item())


@pytest.mark.parametrize("use", [lambda c: c.item(), lambda c: 1.0 if c > 0 else 0.0])
def test_python_numbers_of_a_variable(use):
    def model():
        c = coin("c")
        pyro.sample("x", dist.Normal(use(c), 1.0), obs=X[0])

    message = refusal(model)
    assert "'c' take all their values" in message
    assert "Vindex" in message


def test_a_latent_without_a_mark_is_still_missing():
    def model():
        coin("c")
        pyro.sample("z", dist.Normal(0.0, 1.0))

    assert "'z' of the model is missing in the guide" in refusal(model)


def test_nan_names_the_sum():
    def model():
        c = coin("c")
        pyro.sample("x", dist.Normal(c * torch.tensor(math.nan), 1.0), obs=X[0])

    with pyro.validation_enabled(False):
        assert "site 'c, x' of the model has 1 NaN" in refusal(model)


def test_from_guide_leaves_out_what_is_summed():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(x.new_zeros(2), 3.0).to_event(1))
        pyro.deterministic("gap", loc[..., 1] - loc[..., 0])
        with pyro.plate("data", len(x)):
            c = coin("c")
            mean = pyro.deterministic("mean", Vindex(loc)[..., c])
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    guide = AutoNormal(poutine.block(model, hide=["c"]))
    fitted = fit(model, guide, X, objective=StandardELBO(), num_steps=5, progress=False)
    tree: Any = from_guide(fitted.guide, model, X, num_samples=2)  # as many draws as values of c
    assert set(tree["posterior"].data_vars) == {"loc", "gap"}
    assert set(tree["observed_data"].data_vars) == {"x"}
    assert tree.attrs["summed_out"] == "c, mean"
    loc = torch.tensor(tree["posterior"]["loc"].values[0])
    log_p = dist.Normal(0.0, 3.0).log_prob(loc).sum(-1)
    log_p += (dist.Normal(loc[:, None], 1.0).log_prob(X[:, None]).logsumexp(-1) - math.log(2)).sum(
        -1
    )
    torch.testing.assert_close(torch.tensor(tree["sample_stats"]["log_p"].values[0]), log_p)
