"""Objectives that ask the guide to cover the posterior: chi, forward KL, wake-sleep, tails.

Where the ELBO's guide may miss a part of the posterior at little cost, these look for it. Keywords
are those of `Objective` and of `pyro.infer.ELBO`; illegal values raise a ValueError.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from pyro_elbo_lab.objectives.bounds import (
    chi,
    chi_potential,
    log_mean_exp,
    mean,
    self_normalized,
    tail_adaptive,
)
from pyro_elbo_lab.objectives.gradients.sleep import dream
from pyro_elbo_lab.objectives.gradients.unbiased import Gradient
from pyro_elbo_lab.objectives.gradients.wake import (
    GUIDE_AT_GIVEN,
    REPARAMETERIZED,
    guide_only,
    wake,
)
from pyro_elbo_lab.objectives.objective import Objective
from pyro_elbo_lab.objectives.particles.guide_values import guide_values
from pyro_elbo_lab.objectives.particles.scored import Particles
from pyro_elbo_lab.objectives.settings import Draw
from pyro_elbo_lab.programs.arguments import integer, number
from pyro_elbo_lab.programs.pair import Program
from pyro_elbo_lab.programs.structure.analysis import Structure


def ChiUpperBound(
    num_particles: int, n: float = 2.0, gradient: Gradient = "auto", **keywords: Any
) -> Objective:
    """The chi upper bound CUBO_n = log E_q[w^n] / n of log p(x), which is minimized.

    For the upper end of an evidence sandwich, and for guides that must not be narrower than the
    posterior. The bound is infinite where w^n has no expectation, and its estimate

        log mean_k w_k^n / n

    is biased low by about c^2 / (2 n K), where c is the coefficient of variation of w^n: it is an
    upper bound only for many particles. The guide follows the gradient of the bound itself, with
    weights proportional to w^n, which is biased for few particles; that of the estimate would
    collapse the guide (see `wake`). The model does not learn: it must not lower its evidence.

    Args:
        num_particles: K, many.
        n: above 1.
        gradient: "wake", or "doubly_reparameterized", which has the same expectation and less
            noise, where every latent is reparameterized. "auto" chooses.
        keywords: those of `Objective` and of `pyro.infer.ELBO`.

    Returns:
        A loss for `pyro.infer.SVI`: the estimate itself, in nats. Weights are joint, as an upper
        bound for cells given shared latents is no bound for all; subsampling is refused.

    References:
        Dieng, Tran, Ranganath, Paisley and Blei (2017), Variational inference via chi upper bound
        minimization.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> narrow, wide = (lambda s=s: pyro.sample("z", dist.Normal(0.0, s)) for s in (1.0, 1.3))
        >>> pyro.set_rng_seed(0)
        >>> ChiUpperBound(10000, vectorize_particles=True).loss(narrow, guide=wide) > 0  # log p(x)
        True
    """
    expected = "a number above 1 (at n = 1 the bound is log p(x) for any guide)"
    number("ChiUpperBound: n", n, expected, above=1)
    return Objective(
        f"ChiUpperBound({n})",
        chi(n),
        upper=True,
        num_inner=num_particles,
        method=guide_only(chi_potential(n)),
        weights="joint",
        gradient=gradient,
        **keywords,
    )


def ReweightedWakeSleep(
    num_particles: int,
    gradient: Gradient = "auto",
    insomnia: float = 1.0,
    num_dreams: int = 1,
    **keywords: Any,
) -> Objective:
    """The model follows the importance-weighted bound, the guide the forward KL(p || q).

    The guide's learning is insomnia * wake + (1 - insomnia) * sleep. The wake phase weights draws
    for the data at hand, sum_k w_k d log q(z_k), and is biased towards the ELBO's gradient for few
    particles; the sleep phase is unbiased for data from the model. Neither differentiates through
    draws, so discrete latents are welcome, and neither loses its signal as K grows. (Where one draw
    of the guide depends on another, `pyro.infer.ReweightedWakeSleep` leaves that path open, which
    biases its guide gradient.) Sleep alone with one particle, K = 1 and insomnia = 0, is the
    wake-sleep algorithm: the model follows the ELBO.

    Args:
        num_particles: K, at least 2, or 1 with sleep alone.
        gradient: "wake", or "doubly_reparameterized", which has the same expectation and less
            noise, where every latent is reparameterized. "auto" chooses.
        insomnia: share of the wake phase, in [0, 1]. Below 1 the guide must take a keyword argument
            `observations`, a dict of values by site that stand in for the data.
        num_dreams: draws from the model for the sleep phase.
        keywords: those of `Objective` and of `pyro.infer.ELBO`.

    Returns:
        A loss for `pyro.infer.SVI` whose value is that of IW_K, in nats. Cells of plates have
        weights of their own where no latent is shared between them.

    References:
        Hinton, Dayan, Frey and Neal (1995), The wake-sleep algorithm for unsupervised neural
        networks; Bornschein and Bengio (2015), Reweighted wake-sleep; Le et al. (2019), Revisiting
        reweighted wake-sleep; Tucker, Lawson, Gu and Maddison (2019), Doubly reparameterized
        gradient estimators.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("z", dist.Bernoulli(0.3))
        >>> ReweightedWakeSleep(num_particles=8).loss(model, guide=model)
        0.0
    """
    _check_wake_sleep(num_particles, insomnia, num_dreams)
    return Objective(
        "ReweightedWakeSleep",
        log_mean_exp,
        num_inner=num_particles,
        gradient=gradient,
        method=wake(insomnia),
        weights="complete",
        own_term=None if insomnia == 1 else partial(dream, num=num_dreams, share=1 - insomnia),
        **keywords,
    )


def ForwardKL(
    num_particles: int, reference: Any = None, gradient: Gradient = "auto", **keywords: Any
) -> Objective:
    """KL(p(z | x) || q), up to log p(x): the evidence upper bound log p(x) + KL(p || q).

    Without a reference it is estimated by self-normalized importance weights w of K draws of the
    guide, sum_k w_k l_k, which tends to the bound from below. The guide follows
    sum_k w_k d log q(z_k), which is biased for few particles and needs no differentiable draws. It
    covers all modes that its draws find.

    With draws of the posterior, from NUTS say, every step takes K of them at random: mean_k l_k is
    then as good a bound as the draws are, and its gradient unbiased. For guides that are fit once
    and used often, and to ask how well a family of guides could do.

    In both cases the model does not learn.

    Args:
        num_particles: K; without a reference at least 2, many where the guide is far from the
            posterior.
        reference: draws of all latents of the model: arrays by name, draws first, or a `DataTree`
            with a `posterior`, as `nuts` returns it. Tensors stay what they are; anything else is
            put on the CPU in torch's default dtype. Not together with subsampled plates.
        gradient: without a reference "wake", or "doubly_reparameterized", which has the same
            expectation and less noise, where every latent is reparameterized. "auto" chooses.
        keywords: those of `Objective` and of `pyro.infer.ELBO`.

    Returns:
        A loss for `pyro.infer.SVI`: the estimate itself, in nats. Without a reference, cells of
        plates have weights of their own where no latent is shared between them.

    Raises:
        ValueError: when used, a guide whose latents do not follow from the reference.

    References:
        Bornschein and Bengio (2015), Reweighted wake-sleep; Dieng and Paisley (2019), Reweighted
        expectation maximization (evidence upper bound).

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> ForwardKL(num_particles=8).loss(model, guide=model)
        0.0
        >>> reference = {"z": torch.zeros(100)}
        >>> ForwardKL(num_particles=8, reference=reference).loss(model, guide=model)
        0.0
    """
    if reference is not None:
        _check_reference(reference, gradient)
        return _from_reference(num_particles, reference, keywords)
    _at_least_two("ForwardKL", num_particles)
    return Objective(
        "ForwardKL",
        self_normalized,
        upper=True,
        num_inner=num_particles,
        method=guide_only(log_mean_exp),
        weights="complete",
        gradient=gradient,
        **keywords,
    )


def _check_reference(reference: Any, gradient: Gradient) -> None:
    if gradient != "auto":
        raise ValueError(f"gradient={gradient!r}: draws of a reference leave no choice")
    if not isinstance(reference, Mapping) and not hasattr(reference, "children"):
        raise TypeError(
            "ForwardKL: reference must be draws by site, or a DataTree with a posterior, got a "
            f"{type(reference).__name__}"
        )


def _from_reference(num_particles: int, reference: Any, keywords: dict[str, Any]) -> Objective:
    return Objective(
        "ForwardKL(reference)",
        mean,
        upper=True,
        num_outer=num_particles,
        method=GUIDE_AT_GIVEN,
        source=partial(_rows, reference=reference, num_particles=num_particles),
        **keywords,
    )


def _rows(
    draw: Draw, structure: Structure, guide: Program, reference: Any, num_particles: int
) -> Particles:
    values = guide_values(reference, structure, guide)
    rows = torch.randint(min(map(len, values.values()), default=1), (num_particles,))
    return draw(given={name: value[rows] for name, value in values.items()})


def TailAdaptive(num_particles: int, beta: float = -1.0, **keywords: Any) -> Objective:
    """An f-divergence that adapts to the tail of the weights by their ranks.

    Particle k counts with c_k proportional to (share of particles whose weight is at least
    w_k)^beta: as if w_k itself were its weight, but with a bounded tail. It covers like chi or
    forward KL, and stays stable where their weights have infinite variance.

    Args:
        num_particles: K, at least 2.
        beta: at most 0. 0 is the ELBO.
        keywords: those of `Objective` and of `pyro.infer.ELBO`.

    Returns:
        A loss for `pyro.infer.SVI`. Its value -sum_k c_k l_k, in nats, bounds nothing: watch
        another objective's. Every latent must be reparameterized.

    References:
        Wang, Liu and Liu (2018), Variational inference with tail-adaptive f-divergence. (The
        ranks are ranks: `pyro.infer.TraceTailAdaptive_ELBO` has argsort in their place.)

    Example:
        >>> TailAdaptive(num_particles=32, vectorize_particles=True)
        TailAdaptive(-1.0)(K=32, M=1, gradient='auto', ...)
    """
    _at_least_two("TailAdaptive", num_particles)
    expected = "a number of at most 0, as larger weights must count more"
    number("TailAdaptive: beta", beta, expected, most=0)
    name = f"TailAdaptive({beta})"
    return Objective(
        name,
        tail_adaptive(beta),
        num_inner=num_particles,
        method=REPARAMETERIZED,
        weights="complete",
        **keywords,
    )


def _check_wake_sleep(num_particles: int, insomnia: float, num_dreams: int) -> None:
    if num_particles != 1 or insomnia != 0:
        _at_least_two("ReweightedWakeSleep", num_particles)
    expected = "the share of the wake phase, 0 to 1"
    number("ReweightedWakeSleep: insomnia", insomnia, expected, least=0, most=1)
    integer("ReweightedWakeSleep: num_dreams", num_dreams, least=1)


def _at_least_two(name: str, num_particles: int) -> None:
    integer(f"{name}: num_particles", num_particles, least=1)
    if num_particles < 2:
        raise ValueError(f"{name} compares particles and needs at least 2, got {num_particles}")
