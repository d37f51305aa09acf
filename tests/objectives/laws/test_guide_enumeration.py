"""Guides that enumerate: as Pyro's TraceEnum_ELBO, as sums by hand, and without bias."""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import ELBO, TraceEnum_ELBO
from torch import Tensor

from pyro_elbo_lab.objectives.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.objectives.gradients.unbiased import Gradient
from pyro_elbo_lab.objectives.lower_bounds import StandardELBO
from tests.programs.enumerated_guides import PROGRAMS
from tests.support.tolerances import assert_mean_equals

PARALLEL, SEQUENTIAL = {"enumerate": "parallel"}, {"enumerate": "sequential"}
marks = pytest.mark.parametrize("mark", [PARALLEL, SEQUENTIAL], ids=["parallel", "sequential"])
vectorized = pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "one by one"])


def like(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def evaluate(objective: ELBO, program: tuple, seed: int = 3) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by parameter from a fixed seed, in a store that is filled already."""
    model, guide, args = program
    for _, p in pyro.get_param_store().named_parameters():
        p.grad = None
    pyro.set_rng_seed(seed)
    loss = objective.loss_and_grads(model, guide, *args)
    found = dict(pyro.get_param_store().named_parameters())
    return loss, {name: p.grad for name, p in sorted(found.items()) if p.grad is not None}


def gradients(objective: ELBO, program: tuple, num_evaluations: int) -> Tensor:
    model, guide, args = program
    parameters = [p for _, p in sorted(pyro.get_param_store().named_parameters())]
    rows = []
    for _ in range(num_evaluations):
        for p in parameters:
            p.grad = None
        objective.loss_and_grads(model, guide, *args)
        rows.append(torch.cat([p.grad.reshape(-1) for p in parameters]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "name, vectorize",
    [(name, v) for name in PROGRAMS for v in (True, False) if not (v and "series" in name)],
)
def test_value_and_pathwise_gradient_are_those_of_pyro(name, vectorize):
    pyro.set_rng_seed(1)
    program = PROGRAMS[name]()
    keywords = {"num_particles": 2, "max_plate_nesting": 2, "vectorize_particles": vectorize}
    theirs = TraceEnum_ELBO(strict_enumeration_warning=False, **keywords)
    theirs.loss(program[0], program[1], *program[2])  # creates the parameters
    gradient: Gradient = "auto" if "series" in name or "nested" in name else "pathwise"
    ours = StandardELBO(gradient=gradient, **keywords)
    ours.loss(program[0], program[1], *program[2])
    loss, grads = evaluate(theirs, program)
    found, found_grads = evaluate(ours, program)
    torch.testing.assert_close(found, loss)
    assert found_grads.keys() == grads.keys()
    torch.testing.assert_close(found_grads, grads)


X = like([-1.0, 0.3, 0.8, 1.7])


def mixed(mark: dict[str, str], subsample_size: int | None = None) -> tuple:
    """u ~ Bernoulli drawn; c enumerated given u; v_i ~ Bernoulli drawn given c; x_i given v_i, c:
    all discrete, so that the exact loss is a sum, which the model's terms are far from."""

    def model() -> None:
        u = pyro.sample("u", dist.Bernoulli(like(0.3)))
        c = pyro.sample("c", dist.Categorical(like([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])[u.long()]))
        with pyro.plate("rows", len(X), subsample_size=subsample_size) as index:
            v = pyro.sample("v", dist.Bernoulli(like([0.2, 0.5, 0.7])[c]))
            pyro.sample("x", dist.Normal(v + c - u, 1.0), obs=X[index])

    def guide(all_values: bool = False) -> None:
        drawn = PARALLEL if all_values else {}
        pu = pyro.param("pu", like(0.4))
        pc = pyro.param("pc", like([[0.1, -0.4, 0.3], [0.5, 0.2, -0.2]]))
        pv = pyro.param("pv", like([-0.5, 0.4, 0.2]))
        u = pyro.sample("u", dist.Bernoulli(logits=pu), infer=drawn)
        c = pyro.sample("c", dist.Categorical(logits=pc[u.long()]), infer=mark)
        with pyro.plate("rows", len(X), subsample_size=subsample_size):
            pyro.sample("v", dist.Bernoulli(logits=pv[c]), infer=drawn)

    return model, guide, ()


def exact_loss() -> Tensor:
    """Of `mixed`, by loops over all values."""
    pu, pc, pv = (pyro.param(name).requires_grad_() for name in ("pu", "pc", "pv"))
    total = like(0.0)
    for u in (0, 1):
        log_qu = dist.Bernoulli(logits=pu).log_prob(like(float(u)))
        log_pu = dist.Bernoulli(like(0.3)).log_prob(like(float(u)))
        for c in range(3):
            log_qc = torch.log_softmax(pc[u], -1)[c]
            log_pc = like([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])[u, c].log()
            inner = log_pu - log_qu + log_pc - log_qc
            for x in X:
                for v in (0.0, 1.0):
                    log_qv = dist.Bernoulli(logits=pv[c]).log_prob(like(v))
                    log_pv = dist.Bernoulli(like([0.2, 0.5, 0.7])[c]).log_prob(like(v))
                    log_px = dist.Normal(like(v + c - u), 1.0).log_prob(x)
                    inner = inner + log_qv.exp() * (log_pv - log_qv + log_px)
            total = total + (log_qu + log_qc).exp() * inner
    return -total


def filled(program: tuple) -> tuple:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    program[1]()
    return program


@marks
def test_all_values_are_the_sum_by_hand(mark):
    model, guide, _ = filled(mixed(mark))
    loss, grads = evaluate(StandardELBO(), (model, lambda: guide(all_values=True), ()))
    expected = exact_loss()
    names = sorted(grads)
    torch.testing.assert_close(loss, expected.item())
    exact = torch.autograd.grad(expected, [pyro.param(name) for name in names])
    torch.testing.assert_close([grads[name] for name in names], list(exact))


@marks
@vectorized
@pytest.mark.parametrize("subsample_size", [None, 2], ids=["all rows", "subsampled"])
def test_scores_beside_enumeration_are_unbiased(mark, vectorize, subsample_size):
    program = filled(mixed(mark, subsample_size))
    objective = StandardELBO(2, vectorize_particles=vectorize)
    found = gradients(objective, program, 300 if vectorize else 150)
    exact = torch.autograd.grad(exact_loss(), [pyro.param(n) for n in ("pc", "pu", "pv")])
    assert_mean_equals(found, torch.cat([g.reshape(-1) for g in exact]))
    assert objective.explain(*program[:2])["v"].gradient == (
        "dice" if mark is PARALLEL else "score"
    )
    assert objective.explain(*program[:2])["u"].gradient == "score"


def read_from_outside(mark: dict[str, str]) -> tuple:
    """w ~ Bernoulli; x_i given w; y given the sum of all x: outside of their plate, unless told."""

    def model(outside: bool = True) -> None:
        w = pyro.sample("w", dist.Bernoulli(like(0.3)))
        with pyro.plate("rows", 2):
            x = pyro.sample("x", dist.Bernoulli(0.2 + 0.5 * w))
            if not outside:
                pyro.sample("y", dist.Normal(x + w, 1.0), obs=like(1.3))
        if outside:
            pyro.sample("y", dist.Normal(x.sum(-1, keepdim=True) + w, 1.0), obs=like(1.3))

    def guide(outside: bool = True) -> None:
        w = pyro.sample("w", dist.Bernoulli(logits=pyro.param("pw", like(0.4))), infer=mark)
        logits = pyro.param("px", like([-0.6, 0.9]))[w.long()]
        with pyro.plate("rows", 2):
            pyro.sample("x", dist.Bernoulli(logits=logits), infer=mark)

    return model, guide, ()


def exact_loss_from_outside() -> Tensor:
    """Of `read_from_outside`, by loops over all values."""
    pw, px = (pyro.param(name).requires_grad_() for name in ("pw", "px"))
    total = like(0.0)
    for w, *x in itertools.product((0.0, 1.0), repeat=3):
        values = like(x)
        log_q = dist.Bernoulli(logits=pw).log_prob(like(w))
        log_q = log_q + dist.Bernoulli(logits=px[int(w)]).log_prob(values).sum()
        log_p = dist.Bernoulli(like(0.3)).log_prob(like(w))
        log_p = log_p + dist.Bernoulli(like(0.2 + 0.5 * w)).log_prob(values).sum()
        log_p = log_p + dist.Normal(values.sum() + w, 1.0).log_prob(like(1.3))
        total = total + log_q.exp() * (log_q - log_p)
    return total


@marks
@vectorized
def test_what_is_read_outside_of_its_plate_is_drawn_without_bias(mark, vectorize):
    model, guide, _ = program = filled(read_from_outside(mark))
    objective = StandardELBO(2, vectorize_particles=vectorize)
    with pytest.warns(UserWarning, match="'x' is drawn"):
        table = objective.explain(model, guide)
    assert (table["w"].kl, table["x"].kl) == ("exact sum", "Monte Carlo")
    num_evaluations = 400 if vectorize else 200
    found = gradients(objective, program, num_evaluations)
    exact = exact_loss_from_outside()
    slopes = torch.autograd.grad(exact, [pyro.param(name) for name in ("pw", "px")])
    assert_mean_equals(found, torch.cat([g.reshape(-1) for g in slopes]))
    losses = like([objective.loss(model, guide) for _ in range(num_evaluations)])
    assert_mean_equals(losses, exact.detach())


@marks
def test_a_sum_of_the_model_across_the_guides_plate_is_unbiased(mark):
    """a ~ Bernoulli is summed out, b_i ~ Bernoulli marked in the guide: the log of the sum over a
    mixes all b_i."""
    x = like([1.0, 0.2])

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(like(0.3)), infer=PARALLEL)
        with pyro.plate("rows", 2):
            b = pyro.sample("b", dist.Bernoulli(like(0.4)))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide() -> None:
        logits = pyro.param("logits", like([0.4, -0.6]))
        with pyro.plate("rows", 2):
            pyro.sample("b", dist.Bernoulli(logits=logits), infer=mark)

    program = filled((model, guide, ()))
    logits = pyro.param("logits")
    expected = like(0.0)
    for b in map(like, itertools.product((0.0, 1.0), repeat=2)):
        log_q = dist.Bernoulli(logits=logits).log_prob(b).sum()
        log_p = dist.Bernoulli(like(0.4)).log_prob(b).sum()
        of_a = [dist.Normal(a + b, 1.0).log_prob(x).sum() for a in (0.0, 1.0)]
        log_x = (torch.stack(of_a) + like([0.7, 0.3]).log()).logsumexp(0)
        expected = expected + log_q.exp() * (log_q - log_p - log_x)
    (exact,) = torch.autograd.grad(expected, logits)
    objective = StandardELBO(4, vectorize_particles=True)
    with pytest.warns(UserWarning, match="'b' is drawn"):
        objective.loss(model, guide)
    assert_mean_equals(like([objective.loss(model, guide) for _ in range(300)]), expected.detach())
    assert_mean_equals(gradients(objective, program, 300), exact)


@marks
def test_a_reader_outside_of_the_plate_that_comes_later(mark):
    """What was enumerated is drawn from then on, in all structures."""
    model, guide, _ = filled(read_from_outside(mark))
    pyro.param("px").data[1] = -1.5  # far from the optimum: a gradient that stands out
    objective = StandardELBO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact, slopes = evaluate(objective, (model, guide, (False,)))
    with pytest.warns(UserWarning, match="'x' is drawn"):
        objective.loss(model, guide, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outside = like([objective.loss(model, guide, True) for _ in range(400)])
        inside = like([objective.loss(model, guide, False) for _ in range(400)])
    assert_mean_equals(outside, exact_loss_from_outside().detach())
    assert_mean_equals(inside, exact)
    found = gradients(objective, (model, guide, (False,)), 400)
    assert_mean_equals(found, torch.cat([slopes[name].reshape(-1) for name in ("pw", "px")]))


def test_python_code_on_the_elements_of_a_plate():
    """Sequential enumeration gives all elements one value, with which they would all agree."""

    def model() -> None:
        with pyro.plate("rows", 2):
            x = pyro.sample("x", dist.Bernoulli(like(0.5)))
        mean = like(2.0) if x[0] == x[-1] else like(0.0)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=like(0.0))

    def guide() -> None:
        with pyro.plate("rows", 2):
            pyro.sample("x", dist.Bernoulli(logits=pyro.param("px", like(0.0))), infer=SEQUENTIAL)

    objective = StandardELBO()
    with pytest.warns(UserWarning, match="branches of 'x'.* 'x' is drawn"):
        objective.loss(model, guide)
    expected = 1.0 - dist.Normal(like(0.0), 1.0).log_prob(like(0.0))
    assert_mean_equals(like([objective.loss(model, guide) for _ in range(400)]), expected)


def test_a_reader_outside_of_the_plate_in_one_branch():
    """Branches that were taken before enumerate what is drawn from then on."""

    def model() -> None:
        c = pyro.sample("c", dist.Bernoulli(like(0.3)))
        with pyro.plate("rows", 2):
            x = pyro.sample("x", dist.Bernoulli(like(0.6)))
        if c == 0:
            pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=like(1.3))

    def guide() -> None:
        with pyro.plate("rows", 2):
            logits = pyro.param("px", like([-0.6, 0.9]))
            pyro.sample("x", dist.Bernoulli(logits=logits), infer=SEQUENTIAL)
        pyro.sample("c", dist.Bernoulli(logits=pyro.param("pc", like(0.4))), infer=SEQUENTIAL)

    program = filled((model, guide, ()))
    pc, px = (pyro.param(name) for name in ("pc", "px"))
    expected = like(0.0)
    for c, *x in itertools.product((0.0, 1.0), repeat=3):
        values = like(x)
        log_q = dist.Bernoulli(logits=pc).log_prob(like(c))
        log_q = log_q + dist.Bernoulli(logits=px).log_prob(values).sum()
        log_p = dist.Bernoulli(like(0.3)).log_prob(like(c))
        log_p = log_p + dist.Bernoulli(like(0.6)).log_prob(values).sum()
        if c == 0:
            log_p = log_p + dist.Normal(values.sum(), 1.0).log_prob(like(1.3))
        expected = expected + log_q.exp() * (log_q - log_p)
    slopes = torch.autograd.grad(expected, [pc, px])
    losses = []
    for _ in range(30):  # the first evaluation of each finds out
        with pytest.warns(UserWarning, match="'x' is drawn"):
            losses.append(StandardELBO().loss(model, guide))
    assert_mean_equals(like(losses), expected.detach())
    objective = StandardELBO()
    with pytest.warns(UserWarning, match="'x' is drawn"):
        objective.loss(model, guide)
    exact = torch.cat([g.reshape(-1) for g in slopes])
    assert_mean_equals(gradients(objective, program, 400), exact)


@marks
@pytest.mark.parametrize("build", [StandardELBO, AnalyticKLELBO])
def test_continuous_latents_around_an_enumerated_one(mark, build):
    """a ~ Normal, c given a, z given c: the mean gradient is that of Pyro's, of whatever build."""
    x = like([0.5, 1.4])

    def model() -> None:
        c = pyro.sample("c", dist.Categorical(like([0.2, 0.8])))
        a = pyro.sample("a", dist.Normal(like([-1.0, 1.0])[c], 1.0))
        z = pyro.sample("z", dist.Normal(a, 1.0))
        with pyro.plate("rows", 2):
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide() -> None:
        a = pyro.sample("a", dist.Normal(pyro.param("a_loc", like(0.2)), 0.7))
        logits = torch.stack([like(0.0), a * pyro.param("slope", like(0.5))])
        c = pyro.sample("c", dist.Categorical(logits=logits.T), infer=mark)
        pyro.sample("z", dist.Normal(pyro.param("z_loc", like([0.1, 0.9]))[c], 0.4))

    program = filled((model, guide, ()))
    keywords = {"num_particles": 1, "max_plate_nesting": 1}
    pyro.set_rng_seed(5)
    theirs = gradients(TraceEnum_ELBO(**keywords), program, 300)
    pyro.set_rng_seed(6)
    ours = gradients(build(**keywords), program, 300)
    assert_mean_equals(ours - theirs, torch.zeros(ours.shape[1], dtype=torch.float64))
    if build is AnalyticKLELBO:  # p(a | c), where c depends on a, has no exact KL
        assert build().explain(model, guide)["a"].kl == "exact entropy"


@marks
def test_lands_at_the_posterior(mark):
    """Where the guide is the posterior, every draw has the gradient 0 and the loss -log p(x)."""
    weights = like([0.25, 0.75])
    x, loc = like(0.7), like([-1.0, 1.0])
    evidence = (weights.log() + dist.Normal(loc, 2**0.5).log_prob(x)).logsumexp(-1)
    posterior = weights.log() + dist.Normal(loc, 2**0.5).log_prob(x) - evidence

    def model() -> None:
        c = pyro.sample("c", dist.Categorical(weights))
        z = pyro.sample("z", dist.Normal(loc[c], 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide() -> None:
        c = pyro.sample("c", dist.Categorical(logits=pyro.param("logits", posterior)), infer=mark)
        means = pyro.param("means", (loc + x) / 2)
        pyro.sample("z", dist.Normal(means[c], pyro.param("scale", like(0.5**0.5))))

    loss, grads = evaluate(StandardELBO(3), filled((model, guide, ())))
    torch.testing.assert_close(loss, -evidence.item())
    for grad in grads.values():
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-12, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_kl_weight_scales_the_enumerated_site_too(weight):
    """As a user's own poutine.scale around the latents, without the data."""
    x = like(1.1)

    def build(scale: float) -> tuple:
        def model() -> None:
            with poutine.scale(scale=scale) if scale else poutine.mask(mask=False):
                c = pyro.sample("c", dist.Categorical(like([0.2, 0.8])))
                z = pyro.sample("z", dist.Normal(c + like(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        def guide() -> None:
            with poutine.scale(scale=scale) if scale else poutine.mask(mask=False):
                logits = pyro.param("logits", like([0.0, 0.5]))
                c = pyro.sample("c", dist.Categorical(logits=logits), infer=PARALLEL)
                pyro.sample("z", dist.Normal(pyro.param("loc", like([0.1, 0.9]))[c], 0.4))

        return model, guide, ()

    filled(build(1.0))
    found = evaluate(StandardELBO(gradient="pathwise", kl_weight=weight), build(1.0))
    expected = evaluate(StandardELBO(gradient="pathwise"), build(weight))
    torch.testing.assert_close(found, expected)


def test_branches_with_sites_of_their_own():
    """Python code branches on an enumerated value; each branch has another structure."""
    x = like(0.4)

    def model() -> None:
        c = pyro.sample("c", dist.Bernoulli(like(0.3)))
        mean = like(-1.0)
        if c == 1:
            d = pyro.sample("d", dist.Bernoulli(like(0.6)))
            mean = mean + 1 + d
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide() -> None:
        c = pyro.sample("c", dist.Bernoulli(logits=pyro.param("qc", like(0.2))), infer=SEQUENTIAL)
        if c == 1:
            pyro.sample("d", dist.Bernoulli(logits=pyro.param("qd", like(-0.5))), infer=SEQUENTIAL)

    loss, grads = evaluate(StandardELBO(), filled((model, guide, ())))
    qc, qd = (pyro.param(name).sigmoid() for name in ("qc", "qd"))
    log_x = dist.Normal(like([-1.0, 0.0, 1.0]), 1.0).log_prob(x)
    kl_d = qd * (qd / 0.6).log() + (1 - qd) * ((1 - qd) / 0.4).log()
    kl_c = qc * (qc / 0.3).log() + (1 - qc) * ((1 - qc) / 0.7).log()
    upper = (1 - qd) * log_x[1] + qd * log_x[2] - kl_d
    expected = kl_c - (1 - qc) * log_x[0] - qc * upper
    torch.testing.assert_close(loss, expected.item())
    exact = torch.autograd.grad(expected, [pyro.param("qc"), pyro.param("qd")])
    torch.testing.assert_close([grads["qc"], grads["qd"]], list(exact))


@pytest.mark.parametrize("reparameterized", [True, False], ids=["normal", "bernoulli"])
def test_several_draws_in_the_place_of_all_values(reparameterized):
    """num_samples: the mean gradient is the exact one."""
    x = like(0.4)
    infer = {"enumerate": "parallel", "num_samples": 20}

    def law(logit: Tensor) -> Any:
        return dist.Normal(logit, 1.0) if reparameterized else dist.Bernoulli(logits=logit)

    def model() -> None:
        z = pyro.sample("z", law(like(-0.3)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide() -> None:
        pyro.sample("z", law(pyro.param("q", like(0.6))), infer=infer)

    program = filled((model, guide, ()))
    q = pyro.param("q")
    if reparameterized:
        expected = (q + 0.3) ** 2 / 2 + (q - x) ** 2 / 2
    else:
        p = q.sigmoid()
        kl = torch.distributions.kl_divergence(law(q), law(like(-0.3)))
        expected = kl + p * (1 - x) ** 2 / 2 + (1 - p) * x**2 / 2
    (exact,) = torch.autograd.grad(expected, q)
    assert_mean_equals(gradients(StandardELBO(3), program, 200), exact.reshape(1))


@vectorized
def test_one_subsample_for_all_particles_and_branches(vectorize):
    seen: list[tuple[int, ...]] = []

    def model() -> None:
        c = pyro.sample("c", dist.Bernoulli(like(0.5)))
        with pyro.plate("rows", 50, subsample_size=2) as index:
            seen.append(tuple(index.tolist()))
            pyro.sample(
                "x", dist.Normal(c, 1.0), obs=torch.arange(50.0, dtype=torch.float64)[index]
            )

    def guide() -> None:
        pyro.sample("c", dist.Bernoulli(like(0.4)), infer=SEQUENTIAL)

    objective = StandardELBO(3, vectorize_particles=vectorize)
    objective.loss(model, guide)
    seen.clear()
    objective.loss(model, guide)
    assert len(seen) == (2 if vectorize else 6)
    assert len(set(seen)) == 1


def test_a_guides_factor_of_what_was_drawn_outside_has_its_score():
    """pyro.factor(has_rsample=False) is the density of a draw that Pyro does not see."""
    x = like(0.8)
    probs = like([0.3, 0.7])

    def build(outside: bool) -> tuple[Callable[[], None], Callable[[], None]]:
        def model() -> None:
            z = held[0] if outside else pyro.sample("z", dist.Categorical(probs))
            if outside:
                pyro.factor("prior", probs[z].log())
            pyro.sample("x", dist.Normal(z + like(0.0), 1.0), obs=x)

        def guide() -> None:
            q = dist.Categorical(logits=pyro.param("logits", like([0.1, -0.2])))
            if outside:
                held[0] = q.sample()
                pyro.factor("drawn", q.log_prob(held[0]), has_rsample=False)
            else:
                pyro.sample("z", q)

        return model, guide

    held = [torch.tensor(0)]
    model, guide = build(True)
    program = filled((model, guide, ()))
    logits = pyro.param("logits")
    q = torch.log_softmax(logits, -1)
    log_p = probs.log() + dist.Normal(torch.arange(2.0), 1.0).log_prob(x)
    (exact,) = torch.autograd.grad((q.exp() * (q - log_p)).sum(), logits)
    assert_mean_equals(gradients(StandardELBO(), program, 800), exact)
