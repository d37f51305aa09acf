"""One evaluation: the particles of a plan, or of as many plans as runs have structures."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from pyro_elbo_lab.objectives.bounds import mean
from pyro_elbo_lab.objectives.gradients.mixture import Mixture
from pyro_elbo_lab.objectives.particles.sampling import (
    DeeperPlatesError,
    Drawing,
    StructureChangedError,
    draw,
    run_particles,
    sites_vary,
    sort_runs,
)
from pyro_elbo_lab.objectives.particles.scored import Particles, Run
from pyro_elbo_lab.objectives.planning import first_plan, make_plan, with_choices
from pyro_elbo_lab.objectives.plans import Plan, Plans
from pyro_elbo_lab.objectives.settings import Settings
from pyro_elbo_lab.programs.branches import Branch
from pyro_elbo_lab.programs.enumeration import Site
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.structure.factors import (
    difference,
    is_evaluable,
    signature,
)
from pyro_elbo_lab.programs.structure.reach import NoAverageError
from pyro_elbo_lab.programs.structure.recall import Recall, Values

_MOST_TRIES = 4


class _PlanAnewError(Exception):
    """The runs were not prepared for what they turned out to be."""


@dataclass(frozen=True)
class Evaluation:
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


def evaluate(settings: Settings, plans: Plans, pair: Pair) -> Evaluation:
    """Draw and score the particles of one evaluation.

    Args:
        settings: the objective's.
        plans: of this model and guide, which learn of structures that they did not know.
        pair: model and guide with their arguments.

    Raises:
        ValueError: sites that change more than the objective can take.
    """
    if not settings.takes_any_sites:
        return _evaluate_fixed(settings, plans, pair)
    random_state = torch.get_rng_state()
    if not plans.branches:
        whole = _evaluate_until_planned(settings, plans, pair, Branch(), settings.num_outer)
        if not plans.branches:
            return whole
        torch.set_rng_state(random_state)  # the structure has changed: with branches now
    return _evaluate_branches(settings, plans, pair)


def _evaluate_branches(settings: Settings, plans: Plans, pair: Pair) -> Evaluation:
    """The terms of every branch of every run of a guide with sites that are enumerated
    sequentially."""
    num_runs = 1 if settings.vectorize else settings.num_outer
    drawn = plans.drawn
    found: list[Evaluation] = []
    subsamples: Values = {}
    for _ in range(num_runs):
        branch: Branch | None = Branch()
        while branch is not None:
            with Recall(subsamples):
                num_outer = settings.num_outer // num_runs
                one = _evaluate_until_planned(settings, plans, pair, branch, num_outer)
            found.append(one)
            subsamples = one.parts[0].runs[0].recalled | subsamples
            branch = branch.next()
    if plans.drawn != drawn:  # the first branches enumerate what later ones have to draw
        return _evaluate_branches(settings, plans, pair)
    parts = tuple(part for one in found for part in one.parts)
    plan_of_parts = tuple(plan for one in found for plan in one.plans)
    return Evaluation(parts, plan_of_parts, share=1 / num_runs)


def _evaluate_until_planned(
    settings: Settings, plans: Plans, pair: Pair, branch: Branch, num_outer: int
) -> Evaluation:
    for _ in range(_MOST_TRIES):
        branch.drawn = plans.drawn
        try:
            return _evaluate_any(settings, plans, pair, branch, num_outer)
        except DeeperPlatesError as error:
            plans.nesting = error.nesting
        except NoAverageError as error:
            plans.keep(first_plan(settings, pair, plans.branching, plans.drawn, error.found))
        except _PlanAnewError:
            pass
    raise ValueError(
        f"{settings.name}: the sites of model and guide, or the plates that have cells, change at "
        "every run. Use local_plates=() for joint weights, or StandardELBO."
    )


def _evaluate_fixed(settings: Settings, plans: Plans, pair: Pair) -> Evaluation:
    try:
        return _evaluate_as(settings, plans, plans.latest, pair)
    except StructureChangedError:  # other arguments, perhaps
        plans.keep(first_plan(settings, pair))
    try:
        return _evaluate_as(settings, plans, plans.latest, pair)
    except StructureChangedError as error:
        raise ValueError(f"{settings.name}: {error} StandardELBO takes them as they are.") from None


def _evaluate_as(settings: Settings, plans: Plans, plan: Plan, pair: Pair) -> Evaluation:
    particles = partial(draw, pair, _drawing(settings, plans, plan, settings.num_outer))
    if not settings.source:
        return Evaluation((particles(),), (plan,))
    return Evaluation((settings.source(particles, plan.structure, pair.guide),), (plan,))


def _evaluate_any(
    settings: Settings, plans: Plans, pair: Pair, branch: Branch, num_outer: int
) -> Evaluation:
    first = plans.latest
    averages = plans.averages
    how = _drawing(settings, plans, first, num_outer)
    meet = partial(_meet, settings, plans)
    done = run_particles(pair, replace(how, meet=meet, branch=branch if averages else None))
    number = len(plans)
    own = tuple(_plan_of(settings, run, plans, pair, branch) for run in done.runs)
    if plans.averages and not averages:
        raise _PlanAnewError
    plan = plans.latest = own[-1]
    differ = any(other is not plan for other in own)
    if differ or len(plans) > number:
        branch_on(settings, plans, pair, certain=differ)
    if differ and any(plan.has_cells for plan in own):
        raise _no_cells(settings, own)
    if not all(other is first or _is_prepared(settings, other, first) for other in own):
        raise _PlanAnewError
    if not differ:
        if plan is not first:
            how = _drawing(settings, plans, plan, num_outer)
        return Evaluation((sort_runs(done.runs, done.stack, how),), (plan,))
    alone = replace(done.stack, num_inner=1, num_outer=1)
    parts = (
        sort_runs((run,), alone, _drawing(settings, plans, plan, 1))
        for run, plan in zip(done.runs, own, strict=True)
    )
    return Evaluation(tuple(parts), own)


def _drawing(settings: Settings, plans: Plans, plan: Plan, num_outer: int) -> Drawing:
    return Drawing(
        plan.structure,
        plan.layout,
        num_inner=settings.num_inner,
        num_outer=num_outer,
        vectorize=settings.vectorize,
        max_plate_nesting=max(settings.least_nesting, plans.nesting),
        sums=plans.sums,
        detached=plan.latents_with("score", "wake", "dice"),
        refreshed=_refreshed(settings, plan),
        latent_scale=settings.latent_scale,
        sobol=plan.sobol,
        expectations=plan.expectations,
        dice=plan.latents_with("dice"),
        scored=_scored(settings, plan),
    )


def _meet(settings: Settings, plans: Plans, site: Site) -> Literal["detached", "refreshed", ""]:
    """How to prepare a latent that no plan has told of."""
    differentiable = getattr(site["fn"], "has_rsample", False)
    if not differentiable or settings.gradient == "score" or site["name"] in plans.branching:
        return "detached"
    once = settings.is_linear or settings.gradient == "pathwise"
    return "" if once or not is_evaluable(site) else "refreshed"


def _plan_of(settings: Settings, run: Run, plans: Plans, pair: Pair, branch: Branch) -> Plan:
    found = signature(run.sites)
    if found == plans.latest.structure.signature:
        return plans.latest
    plan = plans.recall(found)
    if plan is None:
        before = plans.latest
        plan = make_plan(settings, pair, run, plans.branching, branch)
        plans.keep(plan)
        if plan.structure.signature != found:  # it asks for sums, which this run had not
            plans.sums = True
            raise _PlanAnewError
        if plan.has_cells != before.has_cells and plan.structure.escaped:
            raise _no_cells(settings, (before, plan))
    return plan


def _is_prepared(settings: Settings, plan: Plan, first: Plan) -> bool:
    """Whether runs that were prepared for the first plan will do for another."""
    scored = first.latents_with("score", "dice")
    return all(
        (name in scored) == (choice.estimator in ("score", "dice"))
        for name, choice in plan.choices.items()
        if name in first.choices
    ) and (settings.num_inner == 1 or all(plan.shares(n) == first.shares(n) for n in plan.choices))


def branch_on(settings: Settings, plans: Plans, pair: Pair, certain: bool) -> None:
    """Give the score-function estimator, from the next evaluation on, to latents that sites
    depend on: the derivative of a value that jumps says nothing of the jumps.

    Args:
        settings: the objective's.
        plans: of this model and guide.
        pair: model and guide with their arguments.
        certain: whether sites have been seen to change.
    """
    latents, escaped = plans.latest.structure.latents, plans.latest.structure.escaped
    suspects = {n for n in escaped - plans.branching if latents[n].reparameterized}
    if settings.gradient != "auto" or not suspects:
        return
    if certain or sites_vary(pair):
        plans.branching |= suspects
        plans.revise(lambda plan: with_choices(settings, plan, plans.branching))


def _no_cells(settings: Settings, plans: tuple[Plan, ...]) -> ValueError:
    one = next(plan for plan in plans if plan.has_cells)
    other = next(plan for plan in plans if plan is not one)
    found = difference(one.structure.signature, other.structure.signature)
    return ValueError(
        f"{settings.name}: the sites of model and guide change with the latents ({found}), but "
        f"cells with weights of their own ({one.layout.reason}) need the same sites in all "
        "particles. Use local_plates=() for joint weights, or StandardELBO."
    )


def _scored(settings: Settings, plan: Plan) -> frozenset[str]:
    nothing: frozenset[str] = frozenset()
    return plan.structure.scored if plan.structure.scored and settings.is_average else nothing


def _refreshed(settings: Settings, plan: Plan) -> frozenset[str]:
    doubly = plan.latents_with("doubly_reparameterized", "doubly_reparameterized_wake")
    return doubly & plan.layout.local if settings.target.outer is mean else doubly
