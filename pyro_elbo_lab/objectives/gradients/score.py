"""The score-function estimator, for draws that cannot be differentiated.

To the differentiated value it adds sum (V - V without draw k) d log q(z_k) + sum v' d log q(z_k),
where V is the objective and v' its slope in l_k, both taken where particle k's log-weight is
replaced by the mean of the others. For the ELBO it is RLOO, also known as VarGrad (Kool, van Hoof
and Welling 2019; Richter, Boustati, Nuesken, Ruiz and Akyildiz 2020), for the importance-weighted
bound VIMCO (Mnih and Rezende 2016). Where the objective is linear in a shared latent's cost, the
cost is summed within its plates and downstream of it only. What remains of a cost can be predicted
by a baseline of the user's own, see `baselines`.
"""

from collections.abc import Collection, Mapping

from torch import Tensor

from pyro_elbo_lab.objectives.bounds import Bound, leave_one_out, mean, replaced
from pyro_elbo_lab.objectives.gradients.baselines import Baselined, subtract_baseline
from pyro_elbo_lab.objectives.particles.scored import CellBlock, Draws, Particles, sum_except
from pyro_elbo_lab.objectives.target import Target, along_outer, totals


def score(
    particles: Particles,
    target: Target,
    draws: list[Draws],
    elsewhere: Mapping[str, Tensor] | None = None,
) -> Baselined:
    """The terms of the given draws, and the loss of their baselines.

    Args:
        particles: the scored draws.
        target: what is optimized.
        draws: of the latents that take this estimator.
        elsewhere: by shared latent what other particles than these say of its cost, (1, *plates).
    """
    elsewhere = elsewhere or {}
    term = loss = particles.zero
    for drawn in draws:
        if drawn.latent.name not in particles.layout.local:
            one = _shared(particles, target, drawn, elsewhere.get(drawn.latent.name))
            term, loss = term + one.term, loss + one.loss
    for block in particles.cells:
        for drawn in draws:
            if drawn.latent.name in block.latents:
                one = _local(particles, target, block, drawn)
                term, loss = term + one.term, loss + one.loss
    return Baselined(term, loss)


def _local(particles: Particles, target: Target, block: CellBlock, drawn: Draws) -> Baselined:
    signal, slope, share = gain(particles, target, block)
    one = score_with(signal, slope, drawn, block.plates.values())
    return Baselined(share * one.term, share * one.loss)


def gain(particles: Particles, target: Target, block: CellBlock) -> tuple[Tensor, Tensor, float]:
    """For each particle of each cell what the value gains by its draws, the value's slope without
    them, each (K, M, *plates), and a factor for what is made of both."""
    log_weights = block.log_weights.detach()
    baseline, slope = leave_one_out(target.inner, log_weights)
    signal = block.weight * (target.inner(log_weights) - baseline)
    if target.outer is mean:
        return signal, slope, 1 / particles.num_outer
    signal, outer_slope = _through_outer(particles, target, signal)
    return signal, outer_slope * slope, 1.0


def score_with(signal: Tensor, slope: Tensor, drawn: Draws, dims: Collection[int]) -> Baselined:
    """The term of one draw in cells over the given dimensions."""
    signal, loss = subtract_baseline(signal, drawn, 2, lambda b: sum_except(b, dims))
    scaled = sum_except(drawn.log_q(scaled=True), dims)
    term = signal * sum_except(drawn.log_q(), dims) + drawn.weight * slope * scaled
    return Baselined(term.sum(), loss)


def _through_outer(particles: Particles, target: Target, gain: Tensor) -> tuple[Tensor, Tensor]:
    """How much B loses if T_m loses the gain, and its slope there, each (K, M, *plates)."""
    estimates = totals(particles, target.inner).detach()
    now = along_outer(estimates, gain.dim()).expand(gain.transpose(0, 1).shape)
    values, slope = replaced(target.outer, now, now - gain.transpose(0, 1))
    lost = target.outer(estimates) - values
    return lost.transpose(0, 1), slope.transpose(0, 1)


def _shared(
    particles: Particles, target: Target, drawn: Draws, elsewhere: Tensor | None
) -> Baselined:
    weight = drawn.weight if has_sampled_log_q(drawn, particles) else 0.0
    log_q, scaled = drawn.log_q().mean(0), drawn.log_q(scaled=True).mean(0)  # (M, *plates)
    if target.outer is mean:
        signal = downstream_cost(particles, target.inner, drawn).detach()
        num_outer = particles.num_outer
        if num_outer > 1:
            signal = signal - (signal.sum(0) - signal) / (num_outer - 1)
        if elsewhere is not None:
            signal = signal - elsewhere
        slope, share = particles.zero + 1, 1 / num_outer
    else:
        signal, slope = gain_of_estimates(particles, target)
        signal, slope = along_outer(signal, log_q.dim()), along_outer(slope, log_q.dim())
        share = 1.0
    signal, loss = subtract_baseline(signal, drawn, 1, lambda b: b.mean(0))
    term = (signal * log_q).sum() + weight * (slope * scaled).sum()
    return Baselined(share * term, share * loss)


def gain_of_estimates(particles: Particles, target: Target) -> tuple[Tensor, Tensor]:
    """What B gains by each estimate T_m, and its slope without it, each (M,)."""
    estimates = totals(particles, target.inner).detach()
    baseline, slope = leave_one_out(target.outer, estimates)
    return target.outer(estimates) - baseline, slope


def has_sampled_log_q(drawn: Draws, particles: Particles) -> bool:
    """Whether log q of a shared latent is evaluated at its draws."""
    name = drawn.latent.name
    return any(f.key == ("guide", name) and f.monte_carlo for f in particles.shared)


def downstream_cost(particles: Particles, inner: Bound, drawn: Draws) -> Tensor:
    """Sum of what depends on the draw, within its plates: (M, *plates)."""
    cost = particles.zero
    name = drawn.latent.name
    for factor in particles.shared:
        if name in factor.reads:
            cost = cost + factor.weight * _within(factor.value, factor.plates, drawn)
    for block in particles.cells:
        if name in block.reads:
            cost = cost + block.weight * _within(inner(block.log_weights), block.plates, drawn)
    return cost


def _within(tensor: Tensor, plates: Mapping[str, int], drawn: Draws) -> Tensor:
    """Sum (M, *plates) over all dimensions but the plates that the latent is in too."""
    common = {dim for plate, dim in plates.items() if plate in drawn.plates}
    outside = [dim for dim in range(1 - tensor.dim(), 0) if dim not in common]
    return tensor.sum(outside, keepdim=True) if outside else tensor
