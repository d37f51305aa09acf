"""The adapter to `pyro.infer.ELBO`: a target, a gradient estimator and a layout behind SVI's loss.

`objectives` has the named objectives, which only choose these parts.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from pyro.infer import ELBO, TraceEnum_ELBO
from torch import Tensor

from pyro_elbo_lab import quasirandom
from pyro_elbo_lab.bounds import Bound, mean
from pyro_elbo_lab.branches import Branch
from pyro_elbo_lab.explanation import Explanation, Row
from pyro_elbo_lab.gradients import UNBIASED, Choice, Gradient, Method
from pyro_elbo_lab.layout import Layout, joint, lay_out, linear
from pyro_elbo_lab.particles import Expectation, Particles, find_nan
from pyro_elbo_lab.quasirandom import SAMPLERS, Sampler
from pyro_elbo_lab.sampling import (
    Recall,
    StructureChangedError,
    Values,
    draw,
    is_vectorizable,
    touching_cells,
)
from pyro_elbo_lab.structure import FactorKey, Program, Site, Structure, analyse, aside
from pyro_elbo_lab.target import Target, value

LocalPlates = str | tuple[str, ...]
Weights = Literal["cells", "complete", "joint"]
KLWeight = float | Callable[[int], float | Tensor]
OwnTerm = Callable[[Program, Program, tuple, dict], Tensor]
Draw = Callable[..., Particles]
Source = Callable[[Draw, Structure, Program], Particles]


@dataclass(frozen=True)
class Route:
    """How one latent's part of the objective is evaluated.

    Attributes:
        name: for `explain`.
        reason: why not something stronger.
        expectations: what takes the place of log-densities; empty for Monte Carlo.
    """

    name: str
    reason: str = ""
    expectations: Mapping[FactorKey, Expectation] = field(default_factory=dict)


FindRoutes = Callable[[Structure, Mapping[FactorKey, Site]], Mapping[str, Route]]


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided once for a (model, guide) pair.

    `branches` has the plans of branches of the guide whose sites are not those of the first.
    """

    structure: Structure
    layout: Layout
    choices: Mapping[str, Choice]
    routes: Mapping[str, Route]
    sobol: quasirandom.Placement | None
    branches: dict[tuple[tuple[str, int], ...], "_Plan"] = field(default_factory=dict)

    @property
    def expectations(self) -> dict[FactorKey, Expectation]:
        return {k: e for route in self.routes.values() for k, e in route.expectations.items()}

    def latents_with(self, *estimators: str) -> frozenset[str]:
        return frozenset(n for n, choice in self.choices.items() if choice.estimator in estimators)

    def of(self, branch: Branch) -> "_Plan":
        return self.branches.get(tuple(branch.path.items()), self)


@dataclass(frozen=True)
class _Part:
    """One of the terms of an evaluation: there are several where a guide has branches."""

    particles: Particles
    plan: _Plan
    share: float = 1.0


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
        upper: whether the value is an upper bound, which is minimised.
        gradient: "auto", "pathwise", "doubly_reparameterized" or "score", see `gradients`.
        method: the family of gradient estimators.
        weights: "cells" gives each cell of local plates weights of its own beside shared latents,
            "complete" only where no latent is shared, "joint" never.
        local_plates: "auto", names of plates, or () for joint weights, see `layout`.
        kl_weight: multiplies the terms of the latents: a number, or a function of the number of
            gradient evaluations so far, see `annealing`.
        source: (draw, structure, guide) -> particles, where draw() gives those of the guide and
            draw(given=values) scores other values.
        own_term: (model, guide, args, kwargs) -> a term that is added to what is maximised.
        find_routes: exact expectations in place of Monte Carlo terms (linear bounds only).
        sampler: "random", or "sobol" for scrambled Sobol points in place of the guide's Gaussian
            noise, which lowers the variance of averages over many particles (powers of 2 are
            best), see `quasirandom`.
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
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(
                    f"{name}: a number of particles must be at least 1 and an integer, "
                    f"got {number!r}"
                )
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
        self.kl_weight = kl_weight
        self.num_gradients = 0
        self.source = source
        self.own_term = own_term
        self.find_routes = find_routes
        self.sampler = sampler
        given = pyro_keywords.get("max_iarange_nesting") or pyro_keywords.get("max_plate_nesting")
        self._least_nesting = 0 if given is None or math.isinf(given) else int(given)
        self._plans: WeakKeyDictionary[Any, WeakKeyDictionary[Any, _Plan]] = WeakKeyDictionary()

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
        with torch.no_grad():
            return self._loss(self._evaluate(model, guide, args, kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss; its gradients are added to the parameters' `.grad`.

        Takes, returns and raises what `loss` does.
        """
        parts = self._evaluate(model, guide, args, kwargs)
        loss = self._loss(parts)
        surrogate = self._surrogate(parts, model, guide, args, kwargs)
        if surrogate.requires_grad:
            (-surrogate).backward(retain_graph=self.retain_graph)
        return loss

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """An estimate of the loss as a scalar tensor that can be differentiated once.

        Takes and raises what `loss` does.
        """
        parts = self._evaluate(model, guide, args, kwargs)
        surrogate = self._surrogate(parts, model, guide, args, kwargs)
        loss = -self.target.sign * self._value(parts).detach()
        return loss - (surrogate - surrogate.detach())

    def explain(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Explanation:
        """Say, site by site, how this objective treats a model and guide.

        Takes and raises what `loss` does.

        Returns:
            A table to print.
        """
        plan = self._make_plan(model, guide, args, kwargs)
        rows = [_explain_average(plan, name) for name in plan.structure.averaged]
        rows += [self._explain_latent(plan, name) for name in plan.structure.latents]
        rows += [_explain_delta(plan, key) for key in plan.structure.reads if _is_delta(plan, key)]
        notes = (f"plates: {plan.layout.reason}", *plan.structure.notes)
        notes += plan.sobol.notes if plan.sobol else ()
        if self.target.outer is not mean and self.num_outer > 1:
            notes += (f"the {self.num_outer} outer particles are weighted, not averaged",)
        if self.target.upper:
            notes += ("an upper bound, which is minimised",)
        return Explanation(repr(self), tuple(rows), notes)

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
        raise NotImplementedError("particles are drawn by pyro_elbo_lab.sampling.draw")

    def _value(self, parts: list[_Part]) -> Tensor:
        values = [part.share * value(part.particles, self.target) for part in parts]
        return values[0] if len(values) == 1 else torch.stack(values).sum()

    def _surrogate(
        self, parts: list[_Part], model: Program, guide: Program, args: tuple, kwargs: dict
    ) -> Tensor:
        self.num_gradients += 1
        surrogate = reduce(
            torch.add,
            [
                part.share * self.method.surrogate(part.particles, self.target, part.plan.choices)
                for part in parts
            ],
        )
        if self.own_term:
            surrogate = surrogate + self.own_term(model, guide, args, kwargs)
        return surrogate

    def _evaluate(self, model: Program, guide: Program, args: tuple, kwargs: dict) -> list[_Part]:
        """The terms of one evaluation: one, unless the guide has sites that are enumerated
        sequentially, where there is one for every branch of every run."""
        program = model, guide, args, kwargs
        plan = self._recall(model, guide) or self._make_plan(*program)
        random_state = torch.get_rng_state()
        if not plan.structure.has_branches:
            one = self._evaluate_branch(plan, program, Branch(), self.num_outer)
            if not one.plan.structure.has_branches:
                return [one]
            torch.set_rng_state(random_state)  # the structure has changed: with branches now
            plan = one.plan
        num_runs = 1 if self.vectorize_particles else self.num_outer
        parts: list[_Part] = []
        subsamples: Values = {}
        for _ in range(num_runs):
            branch: Branch | None = Branch()
            while branch is not None:
                with Recall(subsamples):
                    one = self._evaluate_branch(plan, program, branch, self.num_outer // num_runs)
                parts.append(replace(one, share=1 / num_runs))
                subsamples = subsamples or one.particles.subsamples
                branch = branch.next()
        return parts

    def _evaluate_branch(
        self,
        root: _Plan,
        program: tuple[Program, Program, tuple, dict],
        branch: Branch,
        num_outer: int,
    ) -> _Part:
        plan = known = (self._recall(*program[:2]) or root).of(branch)
        random_state = torch.get_rng_state()
        try:
            particles = self._draw(plan, *program, branch, num_outer)
        except StructureChangedError:
            plan = self._make_plan(*program, branch)
            if plan.structure.signature == known.structure.signature:
                raise ValueError(_RANDOM_STRUCTURE) from None
            torch.set_rng_state(random_state)
            try:
                particles = self._draw(plan, *program, branch, num_outer)
            except StructureChangedError:
                raise ValueError(_RANDOM_STRUCTURE) from None
        return _Part(particles, plan)

    def _draw(
        self,
        plan: _Plan,
        model: Program,
        guide: Program,
        args: tuple,
        kwargs: dict,
        branch: Branch,
        num_outer: int,
    ) -> Particles:
        particles = partial(
            draw,
            model,
            guide,
            args,
            kwargs,
            structure=plan.structure,
            layout=plan.layout,
            num_inner=self.num_inner,
            num_outer=num_outer,
            vectorize=self.vectorize_particles,
            max_plate_nesting=self._least_nesting,
            detached=plan.latents_with("score", "wake", "dice"),
            refreshed=self._refreshed(plan),
            latent_scale=self._latent_scale(),
            expectations=plan.expectations,
            sobol=plan.sobol,
            branch=branch if plan.structure.averaged else None,
            dice=plan.latents_with("dice"),
            scored=self._scored(plan),
        )
        return self.source(particles, plan.structure, guide) if self.source else particles()

    def _scored(self, plan: _Plan) -> frozenset[str]:
        nothing: frozenset[str] = frozenset()
        return plan.structure.scored if plan.structure.scored and self._is_average() else nothing

    def _refreshed(self, plan: _Plan) -> frozenset[str]:
        doubly = plan.latents_with("doubly_reparameterized", "doubly_reparameterized_wake")
        return doubly & plan.layout.local if self.target.outer is mean else doubly

    def _latent_scale(self) -> float | Tensor:
        if not callable(self.kl_weight):
            return self.kl_weight
        return self.kl_weight(self.num_gradients)

    def _recall(self, model: Program, guide: Program) -> _Plan | None:
        try:
            return self._plans.get(model, WeakKeyDictionary()).get(guide)
        except TypeError:  # not weakly referable: planned anew every time
            return None

    def _make_plan(
        self,
        model: Program,
        guide: Program,
        args: tuple,
        kwargs: dict,
        branch: Branch | None = None,
    ) -> _Plan:
        branch = Branch(branch.path if branch else None)
        structure, sites = analyse(model, guide, args, kwargs, branch)
        if structure.averaged:
            self._check_averages(structure, sites)
        self._warn_of_mixed_particles(structure, model, guide, args, kwargs)
        layout = self._lay_out(structure, model, guide, args, kwargs)
        choices = self.method.choose(structure, layout, self.gradient, self.target)
        sobol = None
        if self.sampler == "sobol":
            numbers = self.num_inner, self.num_outer
            program = model, guide, args, kwargs
            sobol = quasirandom.place(structure, layout, choices, *numbers, program)
        routes = self.find_routes(structure, sites) if self.find_routes else {}
        for name, route in routes.items():
            if route.expectations and choices[name].estimator == "doubly_reparameterized":
                choices[name] = Choice("pathwise", "log q is averaged exactly")
        plan = _Plan(structure, layout, choices, routes, sobol)
        root = self._recall(model, guide)
        with suppress(TypeError):  # not weakly referable: planned anew every time
            if branch.path and root:
                root.branches[tuple(branch.path.items())] = plan
            else:
                self._plans.setdefault(model, WeakKeyDictionary())[guide] = plan
        return plan

    def _check_averages(self, structure: Structure, sites: Mapping[FactorKey, Site]) -> None:
        """Refuse what cannot be combined with a guide's enumeration."""
        name = next(iter(structure.averaged))
        found = f"Site '{name}' of the guide asks for enumeration"
        drawing = (
            f"To draw '{name}', remove infer={{'enumerate': ...}} from the guide, or wrap it: "
            "poutine.infer_config(guide, lambda site: {'enumerate': None})."
        )
        if not self._is_average():
            raise NotImplementedError(
                f"{found}, but {self.name} is no average over log-weights: a sum over a guide's "
                "values inside its non-linear function is another bound. Use StandardELBO or "
                f"AnalyticKLELBO, where the sum is exact. {drawing} Or leave '{name}' out of the "
                "guide and mark it in the model with infer={'enumerate': 'parallel'}: it is then "
                "summed out of each weight."
            )
        if self.source is not None or self.sampler == "sobol":
            what = "sampler='sobol'" if self.source is None else self.name
            raise NotImplementedError(
                f"{found}, which does not go together with {what}. Use StandardELBO or "
                f"AnalyticKLELBO with sampler='random'. {drawing}"
            )
        for latent in structure.latents.values():
            infer = sites[FactorKey("guide", latent.name)]["infer"]
            if infer.get("baseline") and (structure.has_branches or latent.within):
                raise ValueError(
                    f"Site '{latent.name}' has infer['baseline'], but is drawn beside '{name}', "
                    "which the guide enumerates: its score then has no baseline. Remove "
                    "infer['baseline']."
                )

    def _lay_out(
        self, structure: Structure, model: Program, guide: Program, args: tuple, kwargs: dict
    ) -> Layout:
        if self.weights == "joint":
            return joint(structure, f"{self.name} has one weight over all sites")
        if self.weights == "cells" and self._is_linear():
            return linear()
        layout = lay_out(structure, self.local_plates)
        shared = structure.latents.keys() - layout.local
        if self.weights == "complete" and shared:
            return joint(structure, f"{self.name} weighs every latent, also '{min(shared)}'")
        if not any(layout.cells.values()):
            return layout
        with aside(), torch.enable_grad():
            particles = draw(
                model, guide, args, kwargs, structure=structure, layout=layout, leaves=True
            )
            name = touching_cells(particles)
        if name is None:
            return layout
        found = f"the log-weights of other cells depend on latent '{name}' ({layout.reason})"
        if self.local_plates != "auto":
            raise ValueError(
                f"local_plates={self.local_plates!r}: {found}. Leave the plate out of "
                "local_plates, or pass local_plates=() for joint weights."
            )
        warnings.warn(f"{self.name} uses joint weights: {found}.", stacklevel=5)
        return joint(structure, found)

    def _is_average(self) -> bool:
        """Whether value and gradient are those of a mean over log-weights."""
        return self._is_linear() and self.target.outer is mean and self.method is UNBIASED

    def _is_linear(self) -> bool:
        if self.target.inner is mean:
            return True
        probe = torch.tensor([[-1.5, 2.0]])
        return self.num_inner == 1 and torch.allclose(self.target.inner(probe), probe[0])

    def _warn_of_mixed_particles(
        self, structure: Structure, model: Program, guide: Program, args: tuple, kwargs: dict
    ) -> None:
        if not self.vectorize_particles or self.num_inner * self.num_outer == 1:
            return
        if structure.has_branches:  # Python code may not take the draws of all particles at once
            return
        if not all(latent.evaluable for latent in structure.latents.values()):
            return
        if not is_vectorizable(model, guide, args, kwargs):
            warnings.warn(
                f"{self.name}: vectorized particles do not score as they do one by one. Either "
                "model or guide mixes dimensions (index them from the right, and declare batch "
                "dimensions with pyro.plate), or it draws random numbers outside of pyro.sample. "
                "vectorize_particles=False is always right.",
                stacklevel=6,
            )

    def _loss(self, parts: list[_Part]) -> float:
        loss = -self.target.sign * self._value(parts).item()
        if math.isnan(loss):
            named = filter(None, (find_nan(part.particles) for part in parts))
            found = next(named, "infinite log-densities of opposite signs cancel")
            raise ValueError(
                f"The loss of {self.name} is NaN: {found}. Check the data for NaN, the parameters "
                "for a learning rate that is too large, and the guide's support."
            )
        if math.isinf(loss):
            warnings.warn(f"The loss of {self.name} is {loss}.", stacklevel=3)
        return loss

    def _explain_latent(self, plan: _Plan, name: str) -> Row:
        latent, choice = plan.structure.latents[name], plan.choices[name]
        cells = plan.layout.cells.get(FactorKey("guide", name))
        place = "shared"
        if cells is not None and name in plan.layout.local:
            place = f"cells of {', '.join(sorted(cells))}" if cells else "joint weight"
        route = plan.routes.get(name, Route("Monte Carlo"))
        return Row(
            site=name,
            distribution=latent.distribution,
            drawn="reparameterized" if latent.reparameterized else "not reparameterized",
            place=place,
            gradient=choice.estimator.replace("_", " "),
            kl=route.name,
            why="; ".join(filter(None, (choice.reason, route.reason))),
        )


def _is_delta(plan: _Plan, key: FactorKey) -> bool:
    in_model = key.name in plan.structure.parents
    known = plan.structure.latents.keys() | plan.structure.averaged.keys()
    return key.side == "guide" and in_model and key.name not in known


def _explain_average(plan: _Plan, name: str) -> Row:
    site = plan.structure.averaged[name]
    why = f"infer={{'enumerate': '{site.how}'}} in the guide"
    if site.num_samples is None:
        return Row(name, site.distribution, "all values", "-", "exact", "exact sum", why)
    gradient = "pathwise" if site.reparameterized else "score"
    draws = f"{site.num_samples} at once"
    return Row(name, site.distribution, draws, "-", gradient, "Monte Carlo", why)


def _explain_delta(plan: _Plan, key: FactorKey) -> Row:
    sources = ", ".join(sorted(plan.structure.reads[key])) or "parameters only"
    return Row(key.name, "Delta", "-", "-", "pathwise", "Monte Carlo", f"a function of {sources}")


_RANDOM_STRUCTURE = (
    "The sites of model and guide, or their plates, differ from run to run on the same arguments. "
    "Objectives need the same sites at every run: give every branch the same sample sites "
    "(poutine.mask switches one off), or use pyro.infer.Trace_ELBO."
)
