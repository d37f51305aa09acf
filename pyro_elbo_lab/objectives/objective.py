"""The adapter to `pyro.infer.ELBO`: a target, a gradient estimator and a layout behind SVI's loss.

`lower_bounds` and its neighbors have the named objectives, which only choose these parts.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro.infer import ELBO, TraceEnum_ELBO
from torch import Tensor

from pyro_elbo_lab.objectives.bounds import Bound, mean
from pyro_elbo_lab.objectives.evaluation import Evaluation, branch_on, evaluate
from pyro_elbo_lab.objectives.explanation import Explanation, rows_of
from pyro_elbo_lab.objectives.gradients.mixture import mixture_surrogate, mixture_value
from pyro_elbo_lab.objectives.gradients.unbiased import UNBIASED, Gradient, Method
from pyro_elbo_lab.objectives.particles.scored import find_nan
from pyro_elbo_lab.objectives.particles.sobol import SAMPLERS, Sampler
from pyro_elbo_lab.objectives.planning import first_plan
from pyro_elbo_lab.objectives.plans import Plans
from pyro_elbo_lab.objectives.schedules import checked_weight
from pyro_elbo_lab.objectives.settings import FindRoutes, LocalPlates, Settings, Source, Weights
from pyro_elbo_lab.objectives.target import Target, value
from pyro_elbo_lab.programs.arguments import check_nesting, integer
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.pair import Pair, Program
from pyro_elbo_lab.programs.state import gradients_on

KLWeight = float | Callable[[int], float | Tensor]
OwnTerm = Callable[[Pair], Tensor]


class Objective(ELBO):
    """A variational objective with Pyro's loss interface.

    Use a named constructor such as `StandardELBO`, or build a new one from a bound of your own.
    One instance serves any number of models: what it learns about a model and guide is kept for
    this pair, and learned anew when their sites change. Losses are negative values of a lower bound
    or values of an upper one, in nats; gradients are those of the expected loss, without bias,
    unless the objective's documentation says otherwise.

    Args:
        name: for messages.
        bound: from log-weights (K, ...) to values (...), see `bounds`. Where its slope jumps (a
            minimum, a median, clipped weights) the gradient is pathwise or the score function.
        num_inner: K, the number of particles inside the bound.
        num_outer: M, the number of independent estimates.
        outer: from these estimates (M,) to the value, by default their mean, see `target`.
        upper: whether the value is an upper bound, which is minimized.
        gradient: "auto", "pathwise", "doubly_reparameterized" or "score", see `gradients.unbiased`.
        method: the family of gradient estimators.
        weights: "cells" gives each cell of local plates weights of its own beside shared latents,
            "complete" only where no latent is shared, "joint" never.
        local_plates: "auto", names of plates, or () for joint weights, see `layout`.
        kl_weight: multiplies the terms of the latents: a number, or a function of the number of
            gradient evaluations so far, see `schedules`.
        source: (draw, structure, guide) -> particles, where draw() gives those of the guide and
            draw(given=values) scores other values.
        own_term: from model and guide with their arguments, a `Pair`, to a term that is added to
            what is maximized.
        find_routes: exact expectations in place of Monte Carlo terms (linear bounds only).
        sampler: "random", or "sobol" for scrambled Sobol points in place of the guide's Gaussian
            noise, which lowers the variance of averages over many particles (powers of 2 are
            best), see `particles.sobol`.
        pyro_keywords: those of `pyro.infer.ELBO`. Without `vectorize_particles=True` particles
            run one after the other.

    Raises:
        ValueError: an unknown gradient or sampler, fewer than one particle, a combination that
            would be biased.
        TypeError: an unknown keyword.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> squared = Objective("Worst of 4", lambda log_weights: log_weights.amin(0), num_inner=4)
        >>> squared.loss(model, model)  # guide = model, so every log-weight is 0
        0.0
    """

    def __init__(
        self,
        name: str,
        bound: Bound,
        *,
        num_inner: int = 1,
        num_outer: int = 1,
        outer: Bound = mean,
        upper: bool = False,
        gradient: Gradient = "auto",
        method: Method = UNBIASED,
        weights: Weights = "cells",
        local_plates: LocalPlates = "auto",
        kl_weight: KLWeight = 1.0,
        source: Source | None = None,
        own_term: OwnTerm | None = None,
        find_routes: FindRoutes | None = None,
        sampler: Sampler = "random",
        **pyro_keywords: Any,
    ) -> None:
        for number in (num_inner, num_outer):
            integer(f"{name}: a number of particles", number, least=1)
        check_nesting(name, pyro_keywords)
        if gradient not in method.gradients:
            raise ValueError(
                f"{name}: gradient={gradient!r} is unknown; choose one of {method.gradients}"
            )
        if sampler not in SAMPLERS:
            raise ValueError(f"{name}: sampler={sampler!r} is unknown; choose one of {SAMPLERS}")
        if sampler == "sobol" and outer is not mean:
            raise ValueError(
                f"{name}: sampler='sobol' makes outer particles depend on each other, so that only "
                "their mean has unbiased gradients. Use outer='mean', or sampler='random'."
            )
        if find_routes and not (bound is mean and outer is mean):
            raise ValueError(f"{name}: only a linear bound can use exact expectations")
        super().__init__(num_particles=num_inner * num_outer, **pyro_keywords)
        self.name = name
        if bound is mean and outer is mean:  # K M independent draws serve a mean of means better
            num_inner, num_outer = 1, num_inner * num_outer
        self.target = Target(bound, outer, upper, num_inner, num_outer)
        self.num_inner = num_inner
        self.num_outer = num_outer
        self.gradient = gradient
        self.method = method
        self.weights = weights
        self.local_plates = local_plates
        self.kl_weight = checked_weight(name, kl_weight)
        self.num_gradients = 0
        self.source = source
        self.own_term = own_term
        self.find_routes = find_routes
        self.sampler = sampler
        given = pyro_keywords.get("max_iarange_nesting") or pyro_keywords.get("max_plate_nesting")
        self._least_nesting = 0 if given is None or math.isinf(given) else int(given)
        self._plans: WeakKeyDictionary[Any, WeakKeyDictionary[Any, Plans]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return (
            f"{self.name}(K={self.num_inner}, M={self.num_outer}, gradient={self.gradient!r}, "
            f"vectorize_particles={self.vectorize_particles}, sampler={self.sampler!r})"
        )

    def __copy__(self) -> "Objective":
        """A copy that shares what was learnt about models and guides, which pickling drops."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _plans=WeakKeyDictionary())

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss, without gradients.

        Args:
            model: a Pyro model.
            guide: a Pyro guide.
            args: positional arguments of both.
            kwargs: keyword arguments of both.

        Returns:
            The negative lower bound or the upper bound, in nats.

        Raises:
            ValueError: a NaN, with the site that has it; a guide that does not fit the model.
        """
        pair = Pair(model, guide, args, kwargs)
        with torch.no_grad():
            return self._loss(evaluate(self._settings, self._plans_of(pair), pair))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss; its gradients are added to the parameters' `.grad`.

        Takes, returns and raises what `loss` does. Within `torch.no_grad()` too.
        """
        if not torch.is_grad_enabled():
            with gradients_on():
                return self.loss_and_grads(model, guide, *args, **kwargs)
        pair = Pair(model, guide, args, kwargs)
        evaluation = evaluate(self._settings, self._plans_of(pair), pair)
        loss = self._loss(evaluation)
        surrogate = self._surrogate(evaluation, pair)
        if surrogate.requires_grad:
            (-surrogate).backward(retain_graph=self.retain_graph)
        return loss

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """An estimate of the loss as a scalar tensor that can be differentiated once.

        Takes and raises what `loss` does.
        """
        pair = Pair(model, guide, args, kwargs)
        evaluation = evaluate(self._settings, self._plans_of(pair), pair)
        surrogate = self._surrogate(evaluation, pair)
        loss = -self.target.sign * self._value(evaluation).detach()
        return loss - (surrogate - surrogate.detach())

    def explain(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Explanation:
        """Say, site by site, how this objective treats a model and guide.

        Takes and raises what `loss` does.

        Returns:
            A table to print.
        """
        pair = Pair(model, guide, args, kwargs)
        plans = self._plans_of(pair)
        plan = first_plan(self._settings, pair, plans.branching, plans.drawn)
        plans.keep(plan)
        notes = (f"plates: {plan.layout.reason}", *plan.structure.notes)
        notes += plan.sobol.notes if plan.sobol else ()
        if self.target.outer is not mean and self.num_outer > 1:
            notes += (f"the {self.num_outer} outer particles are weighted, not averaged",)
        if self.target.upper:
            notes += ("an upper bound, which is minimized",)
        if len(plans) > 1:
            runs = "branch to branch" if plans.branches else "run to run"
            notes += (f"the sites change from {runs}: these are those of one",)
        return Explanation(repr(self), rows_of(plan), notes)

    def compute_marginals(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Mapping[str, Any]:
        """Posterior distributions of the sites that are summed out of the model, given a draw of
        the guide, by `pyro.infer.TraceEnum_ELBO`.

        Takes what `loss` does.

        Returns:
            A distribution for each of these sites, by name.

        Raises:
            NotImplementedError: several particles, or a guide that enumerates.
        """
        return self._as_pyro().compute_marginals(model, guide, *args, **kwargs)

    def sample_posterior(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """What the model returns with the sites that are summed out drawn from their joint
        posterior, given a draw of the guide, by `pyro.infer.TraceEnum_ELBO`.

        Takes and raises what `compute_marginals` does.
        """
        return self._as_pyro().sample_posterior(model, guide, *args, **kwargs)

    def _as_pyro(self) -> TraceEnum_ELBO:
        return TraceEnum_ELBO(
            num_particles=self.num_particles,
            max_plate_nesting=self._least_nesting or math.inf,
            strict_enumeration_warning=False,
        )

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("particles are drawn by objectives.particles.sampling.draw")

    def _value(self, evaluation: Evaluation) -> Tensor:
        if evaluation.share is not None:
            values = [value(part, self.target) for part in evaluation.parts]
            return evaluation.share * torch.stack(values).sum()
        if mixture := evaluation.mixture:
            return mixture_value(mixture, self.target)
        return value(evaluation.parts[0], self.target)

    def _surrogate(self, evaluation: Evaluation, pair: Pair) -> Tensor:
        self.num_gradients += 1
        if mixture := evaluation.mixture:
            surrogate = mixture_surrogate(mixture, self.target)
        else:
            pairs = zip(evaluation.parts, evaluation.plans, strict=True)
            terms = [self.method.surrogate(part, self.target, plan.choices) for part, plan in pairs]
            surrogate = terms[0]
            if evaluation.share is not None:
                surrogate = evaluation.share * torch.stack(terms).sum()
        if self.own_term:
            surrogate = surrogate + self.own_term(pair)
        return surrogate

    @property
    def _settings(self) -> Settings:
        return Settings(
            name=self.name,
            target=self.target,
            num_inner=self.num_inner,
            num_outer=self.num_outer,
            gradient=self.gradient,
            method=self.method,
            weights=self.weights,
            local_plates=self.local_plates,
            latent_scale=self._latent_scale(),
            source=self.source,
            find_routes=self.find_routes,
            sampler=self.sampler,
            vectorize=self.vectorize_particles,
            least_nesting=self._least_nesting,
        )

    def _latent_scale(self) -> float | Tensor:
        if not callable(self.kl_weight):
            return self.kl_weight
        return self.kl_weight(self.num_gradients)

    def _plans_of(self, pair: Pair) -> Plans:
        try:
            known = self._plans.get(pair.model, WeakKeyDictionary()).get(pair.guide)
        except TypeError:  # not weakly referable: planned anew every time
            known = None
        if known:
            return known
        plans = Plans(first_plan(self._settings, pair, checking=True))
        branch_on(self._settings, plans, pair, certain=False)
        with suppress(TypeError):  # as above
            self._plans.setdefault(pair.model, WeakKeyDictionary())[pair.guide] = plans
        return plans

    def _loss(self, evaluation: Evaluation) -> float:
        loss = -self.target.sign * self._value(evaluation).item()
        if math.isnan(loss):
            found = (
                next(filter(None, map(find_nan, evaluation.parts)), None)
                or "infinite log-densities of opposite signs cancel"
            )
            raise ValueError(
                f"The loss of {self.name} is NaN: {found}. Check the data for NaN, the parameters "
                "for a learning rate that is too large, and the guide's support."
            )
        if math.isinf(loss):
            warn(f"The loss of {self.name} is {loss}.")
        return loss
