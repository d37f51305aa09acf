"""What meets a guide that enumerates: it works, or an error says why."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.util import gather
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDiscreteParallel,
    AutoGuideList,
    AutoNormal,
    AutoNormalMessenger,
)
from pyro.optim import Adam
from torch.distributions import constraints

from pyro_elbo_lab import (
    AnalyticKLELBO,
    ImportanceWeightedELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    StandardELBO,
    compiled,
    evidence,
    fit,
    from_guide,
    importance_diagnostics,
    signal_to_noise,
)

PARALLEL, SEQUENTIAL = {"enumerate": "parallel"}, {"enumerate": "sequential"}
marks = pytest.mark.parametrize("mark", [PARALLEL, SEQUENTIAL], ids=["parallel", "sequential"])
Y = torch.tensor([-0.5, 0.2, 3.1, 4.4, 0.7, 3.6])
LOGITS = dist.Normal(torch.tensor([0.0, 4.0]), 1.0).log_prob(Y[:, None])
POSTERIOR = torch.softmax(LOGITS, -1)
LOG_P_Y = (LOGITS.logsumexp(-1) - torch.log(torch.tensor(2.0))).sum().item()


def model(size=None):
    with pyro.plate("rows", len(Y), subsample_size=size) as index:
        c = pyro.sample("c", dist.Categorical(torch.ones(2)))
        pyro.sample("y", dist.Normal(4.0 * c, 1.0), obs=Y[index])


def guide(size=None, infer=PARALLEL):
    probs = pyro.param("probs", POSTERIOR.clone(), constraint=constraints.simplex)
    with pyro.plate("rows", len(Y), subsample_size=size) as index:
        pyro.sample("c", dist.Categorical(probs[index]), infer=infer)


def refusal(objective, model=model, guide=guide, error=NotImplementedError):
    with pytest.raises(error) as caught:
        objective.loss(model, guide)
    return str(caught.value)


@pytest.mark.parametrize(
    "objective",
    [
        ImportanceWeightedELBO(4),
        RenyiELBO(0.5, 4),
        ReweightedWakeSleep(4),
        ImportanceWeightedELBO(1, 4, outer="importance"),
    ],
    ids=repr,
)
def test_weighted_bounds_say_why(objective):
    message = refusal(objective)
    assert "'c' of the guide" in message
    assert objective.name in message
    for remedy in ("another bound", "StandardELBO", "infer_config", "mark it in the model"):
        assert remedy in message


def test_the_remedies_of_the_message_work():
    drawn = poutine.infer_config(guide, lambda site: {"enumerate": None})
    marked = poutine.infer_config(
        model, lambda site: PARALLEL if site["name"] == "c" and not site["is_observed"] else {}
    )
    for program in ((model, drawn), (marked, lambda size=None: None)):
        assert ImportanceWeightedELBO(3).loss(*program) == pytest.approx(-LOG_P_Y, abs=1e-4)


def test_one_particle_of_a_weighted_bound_is_the_elbo():
    assert ImportanceWeightedELBO(1, 2).loss(model, guide) == pytest.approx(-LOG_P_Y, abs=1e-4)


def test_sobol_points_say_why():
    message = refusal(StandardELBO(2, sampler="sobol"))
    assert "'c' of the guide" in message
    assert "sampler='sobol'" in message


def test_a_messenger_is_refused():
    def both():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)

    class Messenger(AutoNormalMessenger):
        def get_posterior(self, name, prior):
            return dist.Bernoulli(0.4) if name == "c" else super().get_posterior(name, prior)

    message = refusal(StandardELBO(), both, Messenger(both))
    assert "'c' of the guide" in message
    assert "Messenger" in message


@pytest.mark.parametrize(
    "fn, infer, found",
    [
        (dist.Normal(0.0, 1.0), PARALLEL, "Normal cannot be listed"),
        (dist.Poisson(1.0), SEQUENTIAL, "Poisson cannot be listed"),
        (dist.Normal(0.0, 1.0), {**SEQUENTIAL, "num_samples": 3}, "num_samples=3"),
        (dist.Normal(0.0, 1.0), {**PARALLEL, "num_samples": 1}, "num_samples=1"),
        (dist.Bernoulli(0.5), {"enumerate": "all"}, "enumerate='all'"),
    ],
    ids=["normal", "poisson", "several of a sequence", "one sample", "unknown"],
)
def test_what_cannot_be_enumerated(fn, infer, found):
    def one(infer=None):
        pyro.sample("c", fn, infer=infer)

    message = refusal(StandardELBO(), one, lambda: one(infer), ValueError)
    assert "'c' of the guide" in message
    assert found in message


def reads_all():
    with pyro.plate("rows", 3):
        c = pyro.sample("c", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(c.sum(-1), 1.0), obs=torch.tensor(1.0))


@marks
def test_a_reader_outside_of_the_plate(mark):
    """Pyro warns where validation is on, and gives a wrong number."""

    def inside():
        with pyro.plate("rows", 3):
            pyro.sample("c", dist.Bernoulli(0.5), infer=mark)

    objective = StandardELBO()
    with pytest.warns(UserWarning) as caught:
        objective.loss(reads_all, inside)
        objective.loss_and_grads(reads_all, inside)
        table = objective.explain(reads_all, inside)
    (message,) = (str(warning.message) for warning in caught)
    for part in ("'y' of the model", "outside plate 'rows'", "'c' is drawn", "into the plate"):
        assert part in message
    assert (table["c"].drawn, table["c"].gradient) == ("not reparameterized", "score")
    assert "drawn though marked to be enumerated: c" in table.notes
    assert "another bound" in refusal(ImportanceWeightedELBO(2), reads_all, inside)


@marks
def test_a_reader_that_nobody_can_follow(mark):
    """What has one value in each run is drawn where its readers are not known."""

    def untracked():
        with pyro.plate("rows", 3):
            c = pyro.sample("c", dist.Bernoulli(0.5))
            assert type(c) is torch.Tensor, "no other tensors"
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    def inside():
        with pyro.plate("rows", 3):
            pyro.sample("c", dist.Bernoulli(0.5), infer=mark)

    objective = StandardELBO()
    with pytest.warns(UserWarning) as caught:
        objective.loss(untracked, inside)
        table = objective.explain(untracked, inside)
    messages = [str(warning.message) for warning in caught]
    assert any("Could not follow" in message for message in messages)
    is_drawn = any("not known whether it depends" in message for message in messages)
    assert is_drawn == (mark is SEQUENTIAL)
    assert (table["c"].kl == "exact sum") == (mark is PARALLEL)


@marks
def test_a_sum_over_the_models_sites_across_the_guides_plate(mark):
    """Pyro refuses the parallel one, and gives a wrong number for the sequential one."""

    @config_enumerate
    def crossing():
        a = pyro.sample("a", dist.Bernoulli(0.5))
        with pyro.plate("rows", 3):
            b = pyro.sample("b", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=torch.ones(3))

    def inside():
        with pyro.plate("rows", 3):
            pyro.sample("b", dist.Bernoulli(0.5), infer=mark)

    objective = StandardELBO()
    with pytest.warns(UserWarning) as caught:
        objective.loss(crossing, inside)
    (message,) = (str(warning.message) for warning in caught)
    for part in ("no more global than guide enumeration", "'rows'", "'b' is drawn"):
        assert part in message
    assert objective.explain(crossing, inside)["b"].kl == "Monte Carlo"


def test_a_chain_that_forgets_too_early():
    def chain(infer=None):
        c = torch.tensor(0.0)
        first = c
        for t in pyro.markov(range(3)):
            c = pyro.sample(f"c_{t}", dist.Bernoulli(0.3 + 0.4 * c), infer=infer)
            first = c if t == 0 else first
        if infer is None:
            pyro.sample("y", dist.Normal(first + c, 1.0), obs=torch.tensor(1.0))

    message = refusal(StandardELBO(), chain, lambda: chain(PARALLEL), ValueError)
    assert "'y' depends on 'c_" in message
    assert "history" in message


def test_a_baseline_beside_sequential_enumeration():
    def both(infer=None, baseline=None):
        pyro.sample("c", dist.Bernoulli(0.5), infer=infer)
        pyro.sample("u", dist.Bernoulli(0.5), infer=baseline)

    def drawn():
        both(SEQUENTIAL, {"baseline": {"use_decaying_avg_baseline": True}})

    message = refusal(StandardELBO(), both, drawn, ValueError)
    assert "'u' has infer['baseline']" in message


def test_nan_names_the_site():
    def broken():
        c = pyro.sample("c", dist.Bernoulli(0.5))
        likelihood = dist.Normal(c, 1.0, validate_args=False)
        pyro.sample("likelihood", likelihood, obs=torch.tensor(float("nan")))

    def of_c():
        pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)

    assert "site 'likelihood' of the model" in refusal(StandardELBO(), broken, of_c, ValueError)


def test_explained_site_by_site():
    def three(z_infer=None, c_infer=None, k_infer=None):
        c = pyro.sample("c", dist.Bernoulli(0.5), infer=c_infer)
        pyro.sample("z", dist.Normal(c, 1.0))
        pyro.sample("k", dist.Bernoulli(0.2 + 0.5 * c))
        pyro.sample("n", dist.Normal(0.0, 1.0), infer=k_infer)

    def of_three():
        three(c_infer=PARALLEL, k_infer={**PARALLEL, "num_samples": 5})

    table = StandardELBO().explain(three, of_three)
    assert [row.site for row in table.rows] == ["c", "n", "z", "k"]
    assert table["c"].drawn == "all values"
    assert (table["c"].gradient, table["c"].kl) == ("exact", "exact sum")
    assert (table["n"].drawn, table["n"].gradient) == ("5 at once", "pathwise")
    assert table["z"].gradient == "doubly reparameterized"
    assert table["k"].gradient == "dice"
    assert "drawn for every value of 'c'" in table["k"].why


def test_exact_kl_within_an_enumerated_value():
    """E_q(c)[KL(q(z | c) || p(z | c))] + KL(q(c) || p(c)), without noise."""

    def both(infer=None, shift=0.0):
        c = pyro.sample("c", dist.Bernoulli(0.3 if infer is None else 0.6), infer=infer)
        pyro.sample("z", dist.Normal(c + shift, 1.0))

    def of_both():
        both(PARALLEL, 0.5)

    kl_c = torch.distributions.kl_divergence(dist.Bernoulli(0.6), dist.Bernoulli(0.3))
    objective = AnalyticKLELBO()
    assert objective.loss(both, of_both) == pytest.approx(0.125 + kl_c.item(), abs=1e-6)
    assert objective.explain(both, of_both)["z"].kl == "exact KL"


@pytest.mark.parametrize("size", [None, 2], ids=["all", "subsampled"])
def test_autoguide_of_discrete_sites(size):
    """AutoDiscreteParallel beside AutoNormal; with z known, its optimum is the exact posterior."""

    def mixture(size=None):
        z = pyro.sample("z", dist.Normal(4.0, 0.01))
        with pyro.plate("rows", len(Y), subsample_size=size) as index:
            c = pyro.sample("c", dist.Categorical(torch.ones(2)))
            pyro.sample("y", dist.Normal(z * c, 1.0), obs=Y[index])

    pyro.set_rng_seed(0)
    combined = AutoGuideList(mixture)
    combined.append(AutoNormal(poutine.block(mixture, expose=["z"]), init_scale=0.01))
    combined.append(AutoDiscreteParallel(poutine.block(mixture, expose=["c"])))
    svi = SVI(mixture, combined, Adam({"lr": 0.1}), StandardELBO())
    for _ in range(120 if size is None else 250):
        svi.step(None)
    probs = next(v for k, v in pyro.get_param_store().items() if "probs" in k)
    torch.testing.assert_close(probs.detach(), POSTERIOR, atol=0.03, rtol=0)


def test_draws_evidence_and_diagnostics_draw_the_site():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    tree = from_guide(guide, model, num_samples=50)
    assert tree.posterior["c"].shape == (1, 50, len(Y))
    assert set(tree.posterior["c"].values.ravel()) <= {0, 1}
    lower = evidence(model, guide, num_samples=100).lower
    assert lower is not None
    assert lower.value == pytest.approx(LOG_P_Y, abs=1e-3)
    assert float(importance_diagnostics(tree)["weight_ess"].max()) == pytest.approx(50)


@marks
def test_compiled_gives_what_an_eager_run_gives(mark):
    def build():
        pyro.clear_param_store()
        pyro.param("probs", torch.full((len(Y), 2), 0.5), constraint=constraints.simplex)

    def of_c(size=None):
        guide(size, mark)

    losses = []
    for objective in (TraceEnum_ELBO(max_plate_nesting=1), compiled(StandardELBO())):
        build()
        svi = SVI(model, of_c, Adam({"lr": 0.1}), objective)
        losses.append([svi.step() for _ in range(5)])
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]))


def test_fit_and_signal_to_noise():
    pyro.clear_param_store()
    pyro.param("probs", torch.full((len(Y), 2), 0.5), constraint=constraints.simplex)
    done = fit(model, guide, objective=StandardELBO(), num_steps=300, progress=False, compile=False)
    gap = done.losses + LOG_P_Y
    assert 0 <= gap[-1] < 0.1 * gap[0]
    found = signal_to_noise({"exact": StandardELBO()}, model, guide, num_evaluations=3)
    assert float(found["sd"].max()) == pytest.approx(0.0, abs=1e-6)


def test_posterior_of_the_models_own_sites():
    @config_enumerate
    def marked():
        model()

    pyro.set_rng_seed(0)
    found = StandardELBO().compute_marginals(marked, lambda: None)
    torch.testing.assert_close(found["c"].probs, POSTERIOR)
    with pytest.raises(NotImplementedError, match="compute_marginals"):
        StandardELBO(2).compute_marginals(marked, lambda: None)


@marks
@pytest.mark.parametrize("particles", [1, 3])
def test_programs_that_insist_on_the_shapes_of_all_values(mark, particles):
    def build(insists):
        def insist(value, expected):
            assert not insists or value.shape == expected

        def of_rows(obs=None, infer=None):
            b = pyro.sample("b", dist.Bernoulli(0.4))
            insist(b, (3, 1) if particles == 3 else ())
            with pyro.plate("rows", 2):
                c = pyro.sample("c", dist.Bernoulli(0.3 + 0.4 * b), infer=infer)
                inner = (1,) * (1 if particles == 1 else 2)
                insist(c, inner if mark is SEQUENTIAL else (2, *inner))
                if obs is not None:
                    pyro.sample("y", dist.Normal(b + c, 1.0), obs=obs)

        marked = {"expand": False, **mark}
        return lambda: of_rows(torch.tensor([0.3, 1.2])), lambda: of_rows(infer=marked)

    keywords = {"num_particles": particles, "vectorize_particles": True, "max_plate_nesting": 1}
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for insists in (False, True):
            pyro.set_rng_seed(0)
            losses.append(StandardELBO(**keywords).loss_and_grads(*build(insists)))
    assert losses[1] == pytest.approx(losses[0])


def test_shapes_that_need_to_know_of_more_plates():
    def of_plates(infer=None):
        c = pyro.sample("c", dist.Bernoulli(0.5), infer=infer)
        assert c.shape == (2, 1)

    program = of_plates, lambda: of_plates(PARALLEL)
    with pytest.raises(AssertionError) as caught:
        StandardELBO().loss(*program)
    assert "max_plate_nesting" in caught.value.__notes__[0]
    assert StandardELBO(max_plate_nesting=1).loss(*program) == pytest.approx(0.0, abs=1e-6)


@marks
def test_a_reader_outside_in_a_program_that_insists_on_shapes(mark):
    def insisting(inside=False, infer=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        assert z.shape == (3, 1)
        with pyro.plate("rows", 2):
            c = pyro.sample("c", dist.Bernoulli(0.5), infer=infer)
        if not inside:
            mean = z + c.sum(-1, keepdim=True)
            pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.tensor(1.0))

    objective = StandardELBO(3, vectorize_particles=True, max_plate_nesting=1)
    with pytest.warns(UserWarning, match="'c' is drawn") as caught:
        objective.loss(insisting, lambda: insisting(True, mark))
    assert len(caught) == 1


@marks
def test_structures_alternate(mark):
    """A label is given in one call and enumerated in the next, under the same seed as Pyro's."""

    def labeled(c=None):
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3)), obs=c)
        z = pyro.sample("z", dist.Normal(c, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.5))

    def of_label(c=None):
        if c is None:
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.4)), infer=mark)
        pyro.sample("z", dist.Normal(0.5 * c, 0.8))

    ours, theirs = (
        StandardELBO(),
        TraceEnum_ELBO(max_plate_nesting=0, strict_enumeration_warning=False),
    )
    for c in (None, torch.tensor(1.0), None, torch.tensor(0.0)):
        losses = []
        for objective in (ours, theirs):
            pyro.set_rng_seed(7)
            losses.append(objective.loss(labeled, of_label, c))
        assert losses[0] == pytest.approx(losses[1])


def test_a_program_that_runs_with_all_values_alone():
    """A table of (time, value) is read at values of shape (value, 1, 1), and at no others."""
    table = torch.tensor([[0.1, 0.5, 0.2, 0.9], [0.3, 0.2, 0.7, 0.4]])
    x = torch.linspace(-1.0, 1.0, 6).reshape(2, 3)

    def model():
        with pyro.plate("detection", 3), pyro.plate("time", 2):
            a = pyro.sample("a", dist.Categorical(torch.ones(4)))
            pyro.sample("x", dist.Normal(gather(table, a, -1), 1.0), obs=x)

    def guide():
        p = pyro.param("p", torch.tensor([0.1, 0.2, 0.3, 0.4]), constraint=constraints.simplex)
        with pyro.plate("detection", 3), pyro.plate("time", 2):
            pyro.sample("a", dist.Categorical(p), infer={"enumerate": "parallel"})

    found = []
    for objective in (TraceEnum_ELBO(max_plate_nesting=2), StandardELBO(max_plate_nesting=2)):
        pyro.clear_param_store()
        loss = objective.loss_and_grads(model, guide)
        found.append((loss, pyro.param("p").unconstrained().grad))
    torch.testing.assert_close(found[1], found[0])
