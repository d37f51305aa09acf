"""Lower bounds of log p(x): each is a bound, a gradient and a statement of when to use it.

All of them take `gradient`: "auto" (doubly reparameterized where every latent that shares weights
is reparameterized, the score function where one is not), "pathwise", "doubly_reparameterized" or
"score"; and any keyword of `Objective`, among them `kl_weight`, and of `pyro.infer.ELBO`, such as
`vectorize_particles=True`. Illegal values raise a ValueError.
"""

from typing import Any, Literal

from pyro_elbo_lab.objectives.bounds import (
    combined,
    jackknife,
    log_mean_exp,
    mean,
    renyi,
    thermodynamic,
    thermodynamic_potential,
    uniform_schedule,
)
from pyro_elbo_lab.objectives.gradients.unbiased import UNBIASED, Gradient
from pyro_elbo_lab.objectives.gradients.wake import PARTIAL, guide_only
from pyro_elbo_lab.objectives.objective import LocalPlates, Objective
from pyro_elbo_lab.programs.arguments import integer, number


def StandardELBO(num_particles: int = 1, gradient: Gradient = "auto", **keywords: Any) -> Objective:
    """The evidence lower bound, E_q[log p(x, z) - log q(z)].

    The workhorse: its maximum is the guide closest to the posterior in KL(q || p). The default
    gradient sticks the landing: its noise vanishes as the guide approaches the posterior. While the
    guide is much narrower than the posterior its noise is larger than that of "pathwise" (on eight
    schools, 100 steps after autoguides' initial scale of 0.1, 180 times the variance): start from a
    wider guide (`init_scale=0.5`), use a few particles, or begin with "pathwise".

    Sites that the guide enumerates (`config_enumerate(guide)`, "parallel" or "sequential") are
    averaged over exactly, as by `pyro.infer.TraceEnum_ELBO`; so are draws with num_samples=.

    Args:
        num_particles: draws that are averaged, at least 1.
        gradient: see the module.
        keywords: those of `Objective` and of `pyro.infer.ELBO`.

    Returns:
        A loss for `pyro.infer.SVI`, in nats.

    References:
        Jordan, Ghahramani, Jaakkola and Saul (1999), An introduction to variational methods
        for graphical models; Roeder, Wu and Duvenaud (2017), Sticking the landing; for the score
        function Kool, van Hoof and Welling (2019), Buy 4 REINFORCE samples, get a baseline for free
        (RLOO), which for log-weights is VarGrad, Richter et al. (2020).

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
        >>> def guide():  # the exact posterior: every draw gives log p(x) = log N(1 | 0, 2)
        ...     pyro.sample("z", dist.Normal(0.5, 0.5**0.5))
        >>> round(StandardELBO().loss(model, guide), 4)
        1.5155
    """
    return Objective("StandardELBO", mean, num_outer=num_particles, gradient=gradient, **keywords)


def ImportanceWeightedELBO(
    num_particles: int,
    num_outer_particles: int = 1,
    gradient: Gradient = "auto",
    local_plates: LocalPlates = "auto",
    outer: Literal["mean", "importance"] = "mean",
    **keywords: Any,
) -> Objective:
    """The importance-weighted bound, E[log mean_k p(x, z_k) / q(z_k)] with K particles.

    It lies between the ELBO and log p(x) and rises with K. Latents of a plate that nothing outside
    depends on get weights of their own in every cell of the plate, and all K particles share the
    global latents; this keeps the bound tight as data grows, and right under subsampling, whose
    scale stands outside the logarithm. With global latents only, the weights are joint.

    For better values of log p(x) than `StandardELBO` gives, and for models that learn: a guide may
    end wider than the posterior, as the weights correct it.

    Args:
        num_particles: K, at least 1.
        num_outer_particles: M independent estimates.
        gradient: see the module. "doubly_reparameterized" is DReG, "score" is VIMCO.
        local_plates: "auto", a tuple of plate names, or () for joint weights.
        outer: "mean" averages the M estimates (MIWAE). "importance" weights them too, which is
            tighter: log mean_m [ w_global,m * prod_cells mean_k w_cell,mk ]. It needs all data: a
            subsampled plate is refused, as a sum over a minibatch inside a logarithm is biased.
        keywords: those of `Objective` and of `pyro.infer.ELBO`.

    Returns:
        A loss for `pyro.infer.SVI`, in nats.

    Raises:
        ValueError: when used, local plates whose latents are read outside, or a subsampled plate
            inside a logarithm.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders; Rainforth et al.
        (2018), Tighter variational bounds are not necessarily better (MIWAE); Tucker, Lawson, Gu
        and Maddison (2019), Doubly reparameterized gradient estimators; Mnih and Rezende (2016),
        Variational inference for Monte Carlo objectives (VIMCO).

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
        >>> def guide():  # too wide; -log p(x) = 1.5155
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> pyro.set_rng_seed(0)
        >>> loss = ImportanceWeightedELBO(num_particles=100000, vectorize_particles=True)
        >>> round(loss.loss(model, guide), 2)
        1.52
    """
    if outer not in ("mean", "importance"):
        raise ValueError(f"outer={outer!r} is unknown; choose 'mean' or 'importance'")
    return Objective(
        "ImportanceWeightedELBO",
        log_mean_exp,
        num_inner=num_particles,
        num_outer=num_outer_particles,
        outer=mean if outer == "mean" else log_mean_exp,
        gradient=gradient,
        local_plates=local_plates,
        **keywords,
    )


def CombinedImportanceWeighted(
    beta: float, num_particles: int, gradient: Gradient = "auto", **keywords: Any
) -> Objective:
    """beta ELBO + (1 - beta) IW_K, both from the same K particles (CIWAE).

    The pathwise gradient of IW_K drowns in noise as K grows while the ELBO's does not; a little of
    the latter keeps the guide learning. With the default, doubly reparameterized gradient there is
    less need for it.

    Args:
        beta: share of the ELBO, in [0, 1].
        num_particles: K, at least 1.
        gradient: see the module.
        keywords: those of `Objective` and of `pyro.infer.ELBO`.

    Returns:
        A loss for `pyro.infer.SVI`, in nats: a lower bound between both.

    References:
        Rainforth et al. (2018), Tighter variational bounds are not necessarily better.

    Example:
        >>> CombinedImportanceWeighted(beta=0.05, num_particles=64)
        CombinedImportanceWeighted(0.05)(K=64, M=1, gradient='auto', ...)
    """
    number("CombinedImportanceWeighted: beta", beta, "a share of the ELBO, 0 to 1", least=0, most=1)
    bound = combined(beta)
    name = f"CombinedImportanceWeighted({beta})"
    return Objective(name, bound, num_inner=num_particles, gradient=gradient, **keywords)


def PartiallyImportanceWeighted(
    num_particles: int, num_outer_particles: int, gradient: Gradient = "auto", **keywords: Any
) -> Objective:
    """The model follows IW_MK of all particles, the guide the mean of M bounds IW_K (PIWAE).

    The model gets the tighter bound's gradient, the guide the less noisy one. For models that
    learn, with pathwise gradients above all. Where model and guide share a parameter, it gets the
    sum of both.

    Args:
        num_particles: K of the guide's bounds.
        num_outer_particles: M.
        gradient: of the guide, see the module.
        keywords: those of `Objective` and of `pyro.infer.ELBO`.

    Returns:
        A loss for `pyro.infer.SVI` whose value is the guide's bound, in nats. Latents of a plate
        have weights of their own only where no latent is shared between cells.

    References:
        Rainforth et al. (2018), Tighter variational bounds are not necessarily better.

    Example:
        >>> PartiallyImportanceWeighted(num_particles=8, num_outer_particles=8)
        PartiallyImportanceWeighted(K=8, M=8, gradient='auto', ...)
    """
    return Objective(
        "PartiallyImportanceWeighted",
        log_mean_exp,
        num_inner=num_particles,
        num_outer=num_outer_particles,
        gradient=gradient,
        method=PARTIAL,
        weights="complete",
        **keywords,
    )


def RenyiELBO(
    alpha: float, num_particles: int, gradient: Gradient = "auto", **keywords: Any
) -> Objective:
    """The variational Renyi bound, E[log mean_k w_k^(1 - alpha)] / (1 - alpha).

    It goes down from the importance-weighted bound (alpha = 0) through the ELBO (alpha = 1) to ever
    more cautious, mode-seeking bounds. Values between 0 and 1 ask the guide to cover more than the
    ELBO does, with less noise than alpha = 0. Cells of plates have weights of their own.

    Args:
        alpha: at least 0. For negative alpha the bound is an upper one: see `ChiUpperBound`.
        num_particles: K, at least 1. The limit K -> infinity is the Renyi bound; for alpha < 1 the
            value lies below it, for alpha > 1 above it and below the ELBO.
        gradient: see the module.
        keywords: those of `Objective` and of `pyro.infer.ELBO`.

    Returns:
        A loss for `pyro.infer.SVI`, in nats: a lower bound of log p(x).

    References:
        Li and Turner (2016), Renyi divergence variational inference.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def normal(scale):  # the model with scale 1, without data: log p(x) = 0
        ...     return lambda: pyro.sample("z", dist.Normal(0.0, scale))
        >>> for alpha in (0.0, 0.5, 1.0):
        ...     pyro.set_rng_seed(0)
        ...     objective = RenyiELBO(alpha, num_particles=10000, vectorize_particles=True)
        ...     print(f"{-objective.loss(normal(1.0), normal(0.8)):.3f}")
        0.006
        -0.023
        -0.042
    """
    number("RenyiELBO: alpha", alpha, "a finite number")
    if alpha < 0:
        raise ValueError(
            f"alpha={alpha!r}: the bound is an upper one for alpha < 0, which is minimized. "
            f"Use ChiUpperBound(n={1 - alpha})."
        )
    name = f"RenyiELBO({alpha})"
    return Objective(name, renyi(alpha), num_inner=num_particles, gradient=gradient, **keywords)


def ThermodynamicELBO(
    num_particles: int,
    schedule: tuple[float, ...] = uniform_schedule(5),
    side: Literal["left", "right"] = "left",
    gradient: Gradient = "auto",
    **keywords: Any,
) -> Objective:
    """The thermodynamic variational objective: log p(x) as an integral over inverse temperatures b.

    log p(x) is the integral of E_b[l] over b from 0 (the guide) to 1 (the posterior), where l is
    the log-weight. A Riemann sum bounds it: the left one from below, the right one from above. The
    expectations are taken by self-normalized importance weights softmax(b l) of K particles, for
    which left sum <= IW_K <= right sum holds at every draw.

    The left sum lies between the ELBO (one interval) and IW_K; it serves models with discrete
    latents, where it was introduced. The right sum is minimized, and an upper bound of log p(x) in
    the limit of many particles.

    Args:
        num_particles: K, at least 1.
        schedule: 0 = b_0 < ... < b_J = 1, for example `bounds.uniform_schedule(5)` or
            `bounds.log_uniform_schedule(5, 0.02)`, whose first interval is small.
        side: "left" or "right".
        gradient: of the left sum see the module. Of the right one "wake",
            "doubly_reparameterized" or "auto", as for `ChiUpperBound`: the gradient of the bound
            and not of its estimate, for the guide and not for the model.
        keywords: those of `Objective` and of `pyro.infer.ELBO`.

    Returns:
        A loss for `pyro.infer.SVI`, in nats. The left sum has weights of its own in the cells of
        plates; the right one has joint weights.

    References:
        Masrani, Le and Wood (2019), The thermodynamic variational objective.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))  # no data: log p(x) = 0
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.5, 1.0))
        >>> left, right = (
        ...     ThermodynamicELBO(10000, side=side, vectorize_particles=True)
        ...     for side in ("left", "right")
        ... )
        >>> pyro.set_rng_seed(0)
        >>> -left.loss(model, guide) < 0 < right.loss(model, guide)
        True
    """
    _check_sum(side, schedule)
    upper = side == "right"
    return Objective(
        f"ThermodynamicELBO({side})",
        thermodynamic(schedule, right=upper),
        upper=upper,
        num_inner=num_particles,
        method=guide_only(thermodynamic_potential(schedule)) if upper else UNBIASED,
        weights="joint" if upper else "cells",
        gradient=gradient,
        **keywords,
    )


def _check_sum(side: Any, schedule: Any) -> None:
    if side not in ("left", "right"):
        raise ValueError(f"side={side!r} is unknown; choose 'left' or 'right'")
    if not isinstance(schedule, tuple | list):
        raise ValueError(
            f"ThermodynamicELBO: schedule must be numbers that rise from 0 to 1, got {schedule!r}."
        )


def JackknifeELBO(
    num_particles: int, order: int = 1, gradient: Gradient = "auto", **keywords: Any
) -> Objective:
    """The jackknife estimate of log p(x): IW bounds of K, K - 1, ... particles without their bias.

    The bias of IW_K falls as 1 / K; the combination of order m removes the terms up to K^-m, at the
    price of more variance. A better estimate of log p(x), but no bound: its error has either sign.

    Args:
        num_particles: K, above `order`.
        order: m, at least 1. It costs (K choose m) logsumexps; 1 or 2 are usual.
        gradient: see the module.
        keywords: those of `Objective` and of `pyro.infer.ELBO`.

    Returns:
        A loss for `pyro.infer.SVI`, in nats.

    References:
        Nowozin (2018), Debiasing evidence approximations: on importance-weighted autoencoders and
        jackknife variational inference.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> wide, narrow = (lambda s=s: pyro.sample("z", dist.Normal(0.0, s)) for s in (1.0, 0.7))
        >>> mean_of_many = {"num_outer": 10000, "vectorize_particles": True}
        >>> pyro.set_rng_seed(0)
        >>> ImportanceWeightedELBO(8, 10000, vectorize_particles=True).loss(wide, narrow)
        0.031
        >>> JackknifeELBO(8, **mean_of_many).loss(wide, narrow)  # log p(x) = 0
        0.010
    """
    integer("JackknifeELBO: num_particles", num_particles, least=1)
    integer("JackknifeELBO: order", order, least=1)
    if order >= num_particles:
        raise ValueError(f"order={order!r}: expected 1 <= order < num_particles={num_particles!r}")
    name = f"JackknifeELBO({order})"
    return Objective(name, jackknife(order), num_inner=num_particles, gradient=gradient, **keywords)
