"""The adapter to `pyro.infer.ELBO`: a target, a gradient estimator and a layout behind SVI's loss.

`lower_bounds` and its neighbors have the named objectives, which only choose these parts.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from pyro.infer import ELBO, TraceEnum_ELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_elbo_lab.objectives.bounds import Bound, mean
from pyro_elbo_lab.objectives.explanation import Explanation, Row
from pyro_elbo_lab.objectives.gradients.mixture import Mixture, mixture_surrogate, mixture_value
from pyro_elbo_lab.objectives.gradients.unbiased import UNBIASED, Choice, Gradient, Method
from pyro_elbo_lab.objectives.particles import sobol
from pyro_elbo_lab.objectives.particles.layout import Layout, joint, lay_out, linear
from pyro_elbo_lab.objectives.particles.probe import Probe, is_vectorizable
from pyro_elbo_lab.objectives.particles.sampling import (
    DeeperPlatesError,
    Drawing,
    StructureChangedError,
    draw,
    repeat,
    run_particles,
    sites_vary,
    sort_runs,
)
from pyro_elbo_lab.objectives.particles.scored import Particles, Run, find_nan
from pyro_elbo_lab.objectives.particles.sobol import SAMPLERS, Sampler
from pyro_elbo_lab.objectives.plans import Plan, Plans, Route
from pyro_elbo_lab.objectives.schedules import checked_weight
from pyro_elbo_lab.objectives.target import Target, value
from pyro_elbo_lab.programs.arguments import check_nesting, integer
from pyro_elbo_lab.programs.branches import Branch
from pyro_elbo_lab.programs.enumeration import Site, is_enumerated
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.pair import Pair, Program
from pyro_elbo_lab.programs.state import gradients_on
from pyro_elbo_lab.programs.structure.analysis import (
    Analysis,
    Structure,
    analyze,
    are_paired,
    assume,
)
from pyro_elbo_lab.programs.structure.factors import (
    PARTICLE_PLATE,
    FactorKey,
    difference,
    is_evaluable,
    is_random,
    signature,
    summands,
)
from pyro_elbo_lab.programs.structure.reach import NoAverageError
from pyro_elbo_lab.programs.structure.recall import Recall, Values, aside
from pyro_elbo_lab.programs.structure.runs import Again

LocalPlates = str | tuple[str, ...]
Weights = Literal["cells", "complete", "joint"]
KLWeight = float | Callable[[int], float | Tensor]
OwnTerm = Callable[[Pair], Tensor]
Draw = Callable[..., Particles]
Source = Callable[[Draw, Structure, Program], Particles]


FindRoutes = Callable[[Structure, Mapping[FactorKey, Site]], Mapping[str, Route]]


_MOST_TRIES = 4


class _PlanAnewError(Exception):
    """The runs were not prepared for what they turned out to be."""


@dataclass(frozen=True)
class _Evaluation:
    """The particles of one evaluation, in parts if their sites differ.

    Attributes:
        parts: the particles.
        plans: that of each part.
        share: of each part, where these are the branches of a guide, whose values add up.
    """

    parts: tuple[Particles, ...]
    plans: tuple[Plan, ...]
    share: float | None = None

    @property
    def mixture(self) -> Mixture | None:
        """The parts if there are several particles with other sites each."""
        if len(self.parts) == 1 or self.share is not None:
            return None
        return Mixture(self.parts, tuple(plan.choices for plan in self.plans))


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
        with torch.no_grad():
            return self._loss(self._evaluate(Pair(model, guide, args, kwargs)))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss; its gradients are added to the parameters' `.grad`.

        Takes, returns and raises what `loss` does. Within `torch.no_grad()` too.
        """
        if not torch.is_grad_enabled():
            with gradients_on():
                return self.loss_and_grads(model, guide, *args, **kwargs)
        pair = Pair(model, guide, args, kwargs)
        evaluation = self._evaluate(pair)
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
        evaluation = self._evaluate(pair)
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
        plan = self._first_plan(pair, plans.branching, plans.drawn)
        plans.keep(plan)
        rows = [_explain_average(plan, name) for name in plan.structure.averaged]
        rows += [self._explain_latent(plan, name) for name in plan.structure.latents]
        rows += [_explain_delta(plan, key) for key in plan.structure.reads if _is_delta(plan, key)]
        notes = (f"plates: {plan.layout.reason}", *plan.structure.notes)
        notes += plan.sobol.notes if plan.sobol else ()
        if self.target.outer is not mean and self.num_outer > 1:
            notes += (f"the {self.num_outer} outer particles are weighted, not averaged",)
        if self.target.upper:
            notes += ("an upper bound, which is minimized",)
        if len(plans) > 1:
            runs = "branch to branch" if plans.branches else "run to run"
            notes += (f"the sites change from {runs}: these are those of one",)
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
        raise NotImplementedError("particles are drawn by objectives.particles.sampling.draw")

    def _value(self, evaluation: _Evaluation) -> Tensor:
        if evaluation.share is not None:
            values = [value(part, self.target) for part in evaluation.parts]
            return evaluation.share * torch.stack(values).sum()
        if mixture := evaluation.mixture:
            return mixture_value(mixture, self.target)
        return value(evaluation.parts[0], self.target)

    def _surrogate(self, evaluation: _Evaluation, pair: Pair) -> Tensor:
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

    def _evaluate(self, pair: Pair) -> _Evaluation:
        plans = self._plans_of(pair)
        if not self._takes_any_sites():
            return self._evaluate_fixed(plans, pair)
        random_state = torch.get_rng_state()
        if not plans.branches:
            whole = self._evaluate_until_planned(plans, pair, Branch(), self.num_outer)
            if not plans.branches:
                return whole
            torch.set_rng_state(random_state)  # the structure has changed: with branches now
        return self._evaluate_branches(plans, pair)

    def _evaluate_branches(self, plans: Plans, pair: Pair) -> _Evaluation:
        """The terms of every branch of every run of a guide with sites that are enumerated
        sequentially."""
        num_runs = 1 if self.vectorize_particles else self.num_outer
        drawn = plans.drawn
        found: list[_Evaluation] = []
        subsamples: Values = {}
        for _ in range(num_runs):
            branch: Branch | None = Branch()
            while branch is not None:
                with Recall(subsamples):
                    num_outer = self.num_outer // num_runs
                    one = self._evaluate_until_planned(plans, pair, branch, num_outer)
                found.append(one)
                subsamples = one.parts[0].runs[0].recalled | subsamples
                branch = branch.next()
        if plans.drawn != drawn:  # the first branches enumerate what later ones have to draw
            return self._evaluate_branches(plans, pair)
        parts = tuple(part for one in found for part in one.parts)
        plan_of_parts = tuple(plan for one in found for plan in one.plans)
        return _Evaluation(parts, plan_of_parts, share=1 / num_runs)

    def _evaluate_until_planned(
        self, plans: Plans, pair: Pair, branch: Branch, num_outer: int
    ) -> _Evaluation:
        for _ in range(_MOST_TRIES):
            branch.drawn = plans.drawn
            try:
                return self._evaluate_any(plans, pair, branch, num_outer)
            except DeeperPlatesError as error:
                plans.nesting = error.nesting
            except NoAverageError as error:
                plans.keep(self._first_plan(pair, plans.branching, plans.drawn, error.found))
            except _PlanAnewError:
                pass
        raise ValueError(
            f"{self.name}: the sites of model and guide, or the plates that have cells, change at "
            "every run. Use local_plates=() for joint weights, or StandardELBO."
        )

    def _takes_any_sites(self) -> bool:
        """Whether particles may differ in their sites: their latents are prepared one by one."""
        return self.method is UNBIASED and self.source is None and self.sampler == "random"

    def _evaluate_fixed(self, plans: Plans, pair: Pair) -> _Evaluation:
        try:
            return self._evaluate_as(plans, plans.latest, pair)
        except StructureChangedError:  # other arguments, perhaps
            plans.keep(self._first_plan(pair))
        try:
            return self._evaluate_as(plans, plans.latest, pair)
        except StructureChangedError as error:
            raise ValueError(f"{self.name}: {error} StandardELBO takes them as they are.") from None

    def _evaluate_as(self, plans: Plans, plan: Plan, pair: Pair) -> _Evaluation:
        particles = partial(draw, pair, self._drawing(plans, plan, self.num_outer))
        if not self.source:
            return _Evaluation((particles(),), (plan,))
        return _Evaluation((self.source(particles, plan.structure, pair.guide),), (plan,))

    def _evaluate_any(
        self, plans: Plans, pair: Pair, branch: Branch, num_outer: int
    ) -> _Evaluation:
        first = plans.latest
        averages = plans.averages
        how = self._drawing(plans, first, num_outer)
        meet = partial(self._meet, plans)
        done = run_particles(pair, replace(how, meet=meet, branch=branch if averages else None))
        number = len(plans)
        own = tuple(self._plan_of(run, plans, pair, branch) for run in done.runs)
        if plans.averages and not averages:
            raise _PlanAnewError
        plan = plans.latest = own[-1]
        differ = any(other is not plan for other in own)
        if differ or len(plans) > number:
            self._branch(plans, pair, certain=differ)
        if differ and any(plan.has_cells for plan in own):
            raise self._no_cells(own)
        if not all(other is first or self._is_prepared(other, first) for other in own):
            raise _PlanAnewError
        if not differ:
            how = self._drawing(plans, plan, num_outer)
            return _Evaluation((sort_runs(done.runs, done.stack, how),), (plan,))
        alone = replace(done.stack, num_inner=1, num_outer=1)
        parts = (
            sort_runs((run,), alone, self._drawing(plans, plan, 1))
            for run, plan in zip(done.runs, own, strict=True)
        )
        return _Evaluation(tuple(parts), own)

    def _drawing(self, plans: Plans, plan: Plan, num_outer: int) -> Drawing:
        return Drawing(
            plan.structure,
            plan.layout,
            num_inner=self.num_inner,
            num_outer=num_outer,
            vectorize=self.vectorize_particles,
            max_plate_nesting=max(self._least_nesting, plans.nesting),
            sums=plans.sums,
            detached=plan.latents_with("score", "wake", "dice"),
            refreshed=self._refreshed(plan),
            latent_scale=self._latent_scale(),
            sobol=plan.sobol,
            expectations=plan.expectations,
            dice=plan.latents_with("dice"),
            scored=self._scored(plan),
        )

    def _meet(self, plans: Plans, site: Site) -> Literal["detached", "refreshed", ""]:
        """How to prepare a latent that no plan has told of."""
        differentiable = getattr(site["fn"], "has_rsample", False)
        if not differentiable or self.gradient == "score" or site["name"] in plans.branching:
            return "detached"
        once = self._is_linear() or self.gradient == "pathwise"
        return "" if once or not is_evaluable(site) else "refreshed"

    def _plan_of(self, run: Run, plans: Plans, pair: Pair, branch: Branch) -> Plan:
        found = signature(run.sites)
        if found == plans.latest.structure.signature:
            return plans.latest
        plan = plans.recall(found)
        if plan is None:
            before = plans.latest
            plan = self._make_plan(pair, run, plans.branching, branch)
            plans.keep(plan)
            if plan.structure.signature != found:  # it asks for sums, which this run had not
                plans.sums = True
                raise _PlanAnewError
            if plan.has_cells != before.has_cells and plan.structure.escaped:
                raise self._no_cells((before, plan))
        return plan

    def _is_prepared(self, plan: Plan, first: Plan) -> bool:
        """Whether runs that were prepared for the first plan will do for another."""
        scored = first.latents_with("score", "dice")
        return all(
            (name in scored) == (choice.estimator in ("score", "dice"))
            for name, choice in plan.choices.items()
            if name in first.choices
        ) and (self.num_inner == 1 or all(plan.shares(n) == first.shares(n) for n in plan.choices))

    def _branch(self, plans: Plans, pair: Pair, certain: bool) -> None:
        """Give the score-function estimator, from the next evaluation on, to latents that sites
        depend on: the derivative of a value that jumps says nothing of the jumps."""
        latents, escaped = plans.latest.structure.latents, plans.latest.structure.escaped
        suspects = {n for n in escaped - plans.branching if latents[n].reparameterized}
        if self.gradient != "auto" or not suspects:
            return
        if certain or sites_vary(pair):
            plans.branching |= suspects
            plans.revise(lambda plan: self._chosen(plan, plans.branching))

    def _no_cells(self, plans: tuple[Plan, ...]) -> ValueError:
        one = next(plan for plan in plans if plan.has_cells)
        other = next(plan for plan in plans if plan is not one)
        found = difference(one.structure.signature, other.structure.signature)
        return ValueError(
            f"{self.name}: the sites of model and guide change with the latents ({found}), but "
            f"cells with weights of their own ({one.layout.reason}) need the same sites in all "
            "particles. Use local_plates=() for joint weights, or StandardELBO."
        )

    def _scored(self, plan: Plan) -> frozenset[str]:
        nothing: frozenset[str] = frozenset()
        return plan.structure.scored if plan.structure.scored and self._is_average() else nothing

    def _refreshed(self, plan: Plan) -> frozenset[str]:
        doubly = plan.latents_with("doubly_reparameterized", "doubly_reparameterized_wake")
        return doubly & plan.layout.local if self.target.outer is mean else doubly

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
        plans = Plans(self._first_plan(pair, checking=True))
        self._branch(plans, pair, certain=False)
        with suppress(TypeError):  # as above
            self._plans.setdefault(pair.model, WeakKeyDictionary())[pair.guide] = plans
        return plans

    def _first_plan(
        self,
        pair: Pair,
        branching: frozenset[str] = frozenset(),
        drawn: frozenset[str] = frozenset(),
        unaveraged: Mapping[str, str] | None = None,
        checking: bool = False,
    ) -> Plan:
        """A plan without a run that it is for. What cannot be averaged is drawn, with a warning.

        Args:
            pair: model and guide with their arguments.
            branching: latents on which the program branches.
            drawn: sites that are known to have to be drawn.
            unaveraged: further ones, with the reasons.
            checking: warn where vectorized particles do not score as they do one by one.
        """
        reasons = dict(unaveraged or {})
        while True:
            branch = Branch(drawn=drawn | reasons.keys())
            try:
                plan = self._make_plan(pair, None, branching, branch, checking)
            except NoAverageError as error:
                reasons |= error.found
            else:
                break
        if is_validation_enabled():
            for why in reasons.values():
                warn(why)
        return plan

    def _make_plan(
        self,
        pair: Pair,
        run: Run | None = None,
        branching: frozenset[str] = frozenset(),
        branch: Branch | None = None,
        checking: bool = False,
    ) -> Plan:
        recall = {} if run is None else run.recalled | self._draws_of(run)
        path = Branch(branch.path, drawn=branch.drawn) if branch else Branch()
        try:
            found = analyze(pair, recall, lenient=self._is_linear(), branch=path)
        except NotImplementedError:
            raise
        except (AssertionError, RuntimeError, IndexError) as error:  # only its own shapes fit
            run = run or self._first_run(pair, path, error)
            again = self._repeat(pair, run, path)
            recall = recall | run.recalled
            structure = assume(run.sites, path.drawn, pair.model, again, recall)
            found, checking = Analysis(structure, dict(run.sites), recall, {}), False
        structure, sites = found.structure, found.sites
        if run and structure.signature != signature(run.sites) and not _lacks_sums(run, structure):
            structure, sites = assume(run.sites, path.drawn), dict(run.sites)
        if structure.averaged or structure.drawn:
            self._check_averages(structure, sites)
        checking = checking and self._may_mix(structure)
        crowded = checking and not structure.averaged
        known = Probe(pair, found._replace(structure=structure, sites=sites), crowded)
        layout = self._lay_out(known)
        if checking and not (known.vectorizable if crowded else _may_be_vectorized(pair)):
            self._warn_of_mixed_particles()
        routes = self.find_routes(structure, sites) if self.find_routes else {}
        plan = self._chosen(Plan(structure, layout, {}, routes, None), branching)
        if self.sampler == "sobol":
            numbers = self.num_inner, self.num_outer
            placed = sobol.place(structure, layout, plan.choices, *numbers, pair)
            plan = replace(plan, sobol=placed)
        return plan

    def _first_run(self, pair: Pair, branch: Branch, error: Exception) -> Run:
        """A run as it will be, of which nothing is known before."""
        if not self._takes_any_sites():
            raise error
        with aside(), self._naming_nesting():
            done = run_particles(pair, self._unplanned(self._least_nesting, branch))
        (run, *_) = done.runs
        if not are_paired(run.sites):
            raise error
        return run

    def _unplanned(self, nesting: int, branch: Branch) -> Drawing:
        return Drawing(
            assume({}),
            linear(),
            num_inner=self.num_inner,
            num_outer=self.num_outer,
            vectorize=self.vectorize_particles,
            max_plate_nesting=nesting,
            sums=True,
            branch=branch,
        )

    @contextmanager
    def _naming_nesting(self) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            error.add_note(
                f"{self.name} ran model and guide as it evaluates them, with what is enumerated to "
                f"the left of {self._least_nesting} dimensions for plates. If they insist on the "
                "shapes that they have in TraceEnum_ELBO, pass its max_plate_nesting=."
            )
            raise

    def _repeat(self, pair: Pair, run: Run, branch: Branch) -> Again:
        plates = [f for site in run.sites.values() for f in site["cond_indep_stack"]]
        dims = [-f.dim for f in plates if f.vectorized and f.name != PARTICLE_PLATE]
        nesting = max(self._least_nesting, *dims, 0)
        return repeat(pair, self._unplanned(nesting, branch))

    def _chosen(self, plan: Plan, branching: frozenset[str]) -> Plan:
        """The plan with the estimators of its latents."""
        latents = {
            name: replace(latent, reparameterized=latent.reparameterized and name not in branching)
            for name, latent in plan.structure.latents.items()
        }
        structure = replace(plan.structure, latents=latents)
        choices = self.method.choose(structure, plan.layout, self.gradient, self.target)
        for name, route in plan.routes.items():
            if route.expectations and choices[name].estimator == "doubly_reparameterized":
                choices[name] = Choice("pathwise", "log q is averaged exactly")
        for name in branching & choices.keys():
            dice = choices[name].estimator == "dice"
            reason = "the sites of the program depend on it"
            choices[name] = Choice("dice" if dice else "score", reason)
        return replace(plan, choices=choices)

    def _draws_of(self, run: Run) -> Values:
        """The draws of the guide, as far as sites may depend on them."""
        if self.vectorize_particles and self.num_inner * self.num_outer > 1:
            return {}
        sites = {key.name: site for key, site in run.sites.items() if key.side == "guide"}
        if any(map(is_enumerated, sites.values())):  # their dimensions are in other values too
            return {}
        return {name: site["value"].detach() for name, site in sites.items() if is_random(site)}

    def _check_averages(self, structure: Structure, sites: Mapping[FactorKey, Site]) -> None:
        """Refuse what cannot be combined with a guide's enumeration."""
        name = next(iter([*structure.averaged, *sorted(structure.drawn)]))
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

    def _lay_out(self, known: Probe) -> Layout:
        structure = known.structure
        if self.weights == "joint":
            return joint(structure, f"{self.name} has one weight over all sites")
        if self.weights == "cells" and self._is_linear():
            return linear()
        layout = lay_out(structure, self.local_plates)
        shared = structure.latents.keys() - layout.local
        if self.weights == "complete" and shared:
            return joint(structure, f"{self.name} weighs every latent, also '{min(shared)}'")
        name = known.touching(layout)
        if name is None:
            return layout
        found = f"the log-weights of other cells depend on latent '{name}' ({layout.reason})"
        if self.local_plates != "auto":
            raise ValueError(
                f"local_plates={self.local_plates!r}: {found}. Leave the plate out of "
                "local_plates, or pass local_plates=() for joint weights."
            )
        warn(f"{self.name} uses joint weights: {found}.")
        return joint(structure, found)

    def _is_average(self) -> bool:
        """Whether value and gradient are those of a mean over log-weights."""
        return self._is_linear() and self.target.outer is mean and self.method is UNBIASED

    def _is_linear(self) -> bool:
        if self.target.inner is mean:
            return True
        probe = torch.tensor([[-1.5, 2.0]])
        return self.num_inner == 1 and torch.allclose(self.target.inner(probe), probe[0])

    def _may_mix(self, structure: Structure) -> bool:
        """Whether particles run at once that can be replayed one by one."""
        if not self.vectorize_particles or self.num_inner * self.num_outer == 1:
            return False
        if structure.has_branches:  # Python code may not take the draws of all particles at once
            return False
        return all(latent.evaluable for latent in structure.latents.values())

    def _warn_of_mixed_particles(self) -> None:
        warn(
            f"{self.name}: vectorized particles do not score as they do one by one. Either "
            "model or guide mixes dimensions (index them from the right, and declare batch "
            "dimensions with pyro.plate), or it draws random numbers outside of pyro.sample. "
            "vectorize_particles=False is always right."
        )

    def _loss(self, evaluation: _Evaluation) -> float:
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

    def _explain_latent(self, plan: Plan, name: str) -> Row:
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


def _may_be_vectorized(pair: Pair) -> bool:
    """With draws in place of what the guide enumerates."""
    try:
        return is_vectorizable(pair)
    except AssertionError:  # it insists on the shapes of all values
        return True


def _is_delta(plan: Plan, key: FactorKey) -> bool:
    in_model = key.name in plan.structure.parents
    known = plan.structure.latents.keys() | plan.structure.averaged.keys()
    return key.side == "guide" and in_model and key.name not in known


def _explain_average(plan: Plan, name: str) -> Row:
    site = plan.structure.averaged[name]
    why = f"infer={{'enumerate': '{site.how}'}} in the guide"
    if site.num_samples is None:
        return Row(name, site.distribution, "all values", "-", "exact", "exact sum", why)
    gradient = "pathwise" if site.reparameterized else "score"
    draws = f"{site.num_samples} at once"
    return Row(name, site.distribution, draws, "-", gradient, "Monte Carlo", why)


def _explain_delta(plan: Plan, key: FactorKey) -> Row:
    sources = ", ".join(sorted(plan.structure.reads[key])) or "parameters only"
    return Row(key.name, "Delta", "-", "-", "pathwise", "Monte Carlo", f"a function of {sources}")


def _lacks_sums(run: Run, structure: Structure) -> bool:
    """Whether sites that are to be summed out were drawn."""
    sites = (summands(key, site) for key, site in run.sites.items())
    summed = {key.name for parts in sites for key, site in parts.items() if is_enumerated(site)}
    return not summed.issuperset(structure.enumerated)
