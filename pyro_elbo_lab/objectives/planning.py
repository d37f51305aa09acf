"""Plans: what an objective decides once for each structure of a model and guide, before it runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from pyro.infer.util import is_validation_enabled

from pyro_elbo_lab.objectives.gradients.unbiased import Choice
from pyro_elbo_lab.objectives.particles import sobol
from pyro_elbo_lab.objectives.particles.layout import Layout, joint, lay_out, linear
from pyro_elbo_lab.objectives.particles.probe import Probe, is_vectorizable
from pyro_elbo_lab.objectives.particles.sampling import (
    Drawing,
    repeat,
    run_particles,
)
from pyro_elbo_lab.objectives.particles.scored import Run
from pyro_elbo_lab.objectives.plans import Plan
from pyro_elbo_lab.objectives.settings import Settings
from pyro_elbo_lab.programs.branches import Branch
from pyro_elbo_lab.programs.enumeration import Site, is_enumerated
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.pair import Pair
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
    is_random,
    signature,
    summands,
)
from pyro_elbo_lab.programs.structure.reach import NoAverageError
from pyro_elbo_lab.programs.structure.recall import Values, aside
from pyro_elbo_lab.programs.structure.runs import Again


def first_plan(
    settings: Settings,
    pair: Pair,
    branching: frozenset[str] = frozenset(),
    drawn: frozenset[str] = frozenset(),
    unaveraged: Mapping[str, str] | None = None,
    checking: bool = False,
) -> Plan:
    """A plan without a run that it is for. What cannot be averaged is drawn, with a warning.

    Args:
        settings: the objective's.
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
            plan = make_plan(settings, pair, None, branching, branch, checking)
        except NoAverageError as error:
            reasons |= error.found
        else:
            break
    if is_validation_enabled():
        for why in reasons.values():
            warn(why)
    return plan


def make_plan(
    settings: Settings,
    pair: Pair,
    run: Run | None = None,
    branching: frozenset[str] = frozenset(),
    branch: Branch | None = None,
    checking: bool = False,
) -> Plan:
    """A plan for the sites of a run, or for those that are found.

    Args:
        settings: the objective's.
        pair: model and guide with their arguments.
        run: that it is for, None if it is the first.
        branching: latents on which the program branches.
        branch: of a guide whose sites are enumerated sequentially.
        checking: as for `first_plan`.

    Raises:
        ValueError: a guide that does not fit the model; cells that are not independent.
        NotImplementedError: an enumeration that this objective cannot average over.
        NoAverageError: sites of the guide have to be drawn instead.
    """
    recall = {} if run is None else run.recalled | _draws_of(settings, run)
    path = Branch(branch.path, drawn=branch.drawn) if branch else Branch()
    try:
        found = analyze(pair, recall, lenient=settings.is_linear, branch=path)
    except NotImplementedError:
        raise
    except (AssertionError, RuntimeError, IndexError) as error:  # only its own shapes fit
        run = run or _first_run(settings, pair, path, error)
        again = _repeat(settings, pair, run, path)
        recall = recall | run.recalled
        structure = assume(run.sites, path.drawn, pair.model, again, recall)
        found, checking = Analysis(structure, dict(run.sites), recall, {}), False
    structure, sites = found.structure, found.sites
    if run and structure.signature != signature(run.sites) and not _lacks_sums(run, structure):
        structure, sites = assume(run.sites, path.drawn), dict(run.sites)
    if structure.averaged or structure.drawn:
        _check_averages(settings, structure, sites)
    checking = checking and _may_mix(settings, structure)
    crowded = checking and not structure.averaged
    known = Probe(pair, found._replace(structure=structure, sites=sites), crowded)
    layout = _lay_out(settings, known)
    if checking and not (known.vectorizable if crowded else _may_be_vectorized(pair)):
        _warn_of_mixed_particles(settings)
    routes = settings.find_routes(structure, sites) if settings.find_routes else {}
    plan = with_choices(settings, Plan(structure, layout, {}, routes, None), branching)
    if settings.sampler == "sobol":
        numbers = settings.num_inner, settings.num_outer
        placed = sobol.place(structure, layout, plan.choices, *numbers, pair)
        plan = replace(plan, sobol=placed)
    return plan


def _first_run(settings: Settings, pair: Pair, branch: Branch, error: Exception) -> Run:
    """A run as it will be, of which nothing is known before."""
    if not settings.takes_any_sites:
        raise error
    with aside(), _naming_nesting(settings):
        done = run_particles(pair, _unplanned(settings, settings.least_nesting, branch))
    (run, *_) = done.runs
    if not are_paired(run.sites):
        raise error
    return run


def _unplanned(settings: Settings, nesting: int, branch: Branch) -> Drawing:
    return Drawing(
        assume({}),
        linear(),
        num_inner=settings.num_inner,
        num_outer=settings.num_outer,
        vectorize=settings.vectorize,
        max_plate_nesting=nesting,
        sums=True,
        branch=branch,
    )


@contextmanager
def _naming_nesting(settings: Settings) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        error.add_note(
            f"{settings.name} ran model and guide as it evaluates them, with what is enumerated to "
            f"the left of {settings.least_nesting} dimensions for plates. If they insist on the "
            "shapes that they have in TraceEnum_ELBO, pass its max_plate_nesting=."
        )
        raise


def _repeat(settings: Settings, pair: Pair, run: Run, branch: Branch) -> Again:
    plates = [f for site in run.sites.values() for f in site["cond_indep_stack"]]
    dims = [-f.dim for f in plates if f.vectorized and f.name != PARTICLE_PLATE]
    nesting = max(settings.least_nesting, *dims, 0)
    return repeat(pair, _unplanned(settings, nesting, branch))


def with_choices(settings: Settings, plan: Plan, branching: frozenset[str]) -> Plan:
    """The plan with the estimators of its latents.

    Args:
        settings: the objective's.
        plan: without choices.
        branching: latents on which the program branches.
    """
    latents = {
        name: replace(latent, reparameterized=latent.reparameterized and name not in branching)
        for name, latent in plan.structure.latents.items()
    }
    structure = replace(plan.structure, latents=latents)
    choices = settings.method.choose(structure, plan.layout, settings.gradient, settings.target)
    for name, route in plan.routes.items():
        if route.expectations and choices[name].estimator == "doubly_reparameterized":
            choices[name] = Choice("pathwise", "log q is averaged exactly")
    for name in branching & choices.keys():
        dice = choices[name].estimator == "dice"
        reason = "the sites of the program depend on it"
        choices[name] = Choice("dice" if dice else "score", reason)
    return replace(plan, choices=choices)


def _draws_of(settings: Settings, run: Run) -> Values:
    """The draws of the guide, as far as sites may depend on them."""
    if settings.vectorize and settings.num > 1:
        return {}
    sites = {key.name: site for key, site in run.sites.items() if key.side == "guide"}
    if any(map(is_enumerated, sites.values())):  # their dimensions are in other values too
        return {}
    return {name: site["value"].detach() for name, site in sites.items() if is_random(site)}


def _check_averages(
    settings: Settings, structure: Structure, sites: Mapping[FactorKey, Site]
) -> None:
    """Refuse what cannot be combined with a guide's enumeration."""
    name = next(iter([*structure.averaged, *sorted(structure.drawn)]))
    found = f"Site '{name}' of the guide asks for enumeration"
    drawing = (
        f"To draw '{name}', remove infer={{'enumerate': ...}} from the guide, or wrap it: "
        "poutine.infer_config(guide, lambda site: {'enumerate': None})."
    )
    if not settings.is_average:
        raise NotImplementedError(
            f"{found}, but {settings.name} is no average over log-weights: a sum over a guide's "
            "values inside its non-linear function is another bound. Use StandardELBO or "
            f"AnalyticKLELBO, where the sum is exact. {drawing} Or leave '{name}' out of the "
            "guide and mark it in the model with infer={'enumerate': 'parallel'}: it is then "
            "summed out of each weight."
        )
    if settings.source is not None or settings.sampler == "sobol":
        what = "sampler='sobol'" if settings.source is None else settings.name
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


def _lay_out(settings: Settings, known: Probe) -> Layout:
    structure = known.structure
    if settings.weights == "joint":
        return joint(structure, f"{settings.name} has one weight over all sites")
    if settings.weights == "cells" and settings.is_linear:
        return linear()
    layout = lay_out(structure, settings.local_plates)
    shared = structure.latents.keys() - layout.local
    if settings.weights == "complete" and shared:
        return joint(structure, f"{settings.name} weighs every latent, also '{min(shared)}'")
    name = known.touching(layout)
    if name is None:
        return layout
    found = f"the log-weights of other cells depend on latent '{name}' ({layout.reason})"
    if settings.local_plates != "auto":
        raise ValueError(
            f"local_plates={settings.local_plates!r}: {found}. Leave the plate out of "
            "local_plates, or pass local_plates=() for joint weights."
        )
    warn(f"{settings.name} uses joint weights: {found}.")
    return joint(structure, found)


def _may_mix(settings: Settings, structure: Structure) -> bool:
    """Whether particles run at once that can be replayed one by one."""
    if not settings.vectorize or settings.num == 1:
        return False
    if structure.has_branches:  # Python code may not take the draws of all particles at once
        return False
    return all(latent.evaluable for latent in structure.latents.values())


def _warn_of_mixed_particles(settings: Settings) -> None:
    warn(
        f"{settings.name}: vectorized particles do not score as they do one by one. Either "
        "model or guide mixes dimensions (index them from the right, and declare batch "
        "dimensions with pyro.plate), or it draws random numbers outside of pyro.sample. "
        "vectorize_particles=False is always right."
    )


def _may_be_vectorized(pair: Pair) -> bool:
    """With draws in place of what the guide enumerates."""
    try:
        return is_vectorizable(pair)
    except AssertionError:  # it insists on the shapes of all values
        return True


def _lacks_sums(run: Run, structure: Structure) -> bool:
    """Whether sites that are to be summed out were drawn."""
    sites = (summands(key, site) for key, site in run.sites.items())
    summed = {key.name for parts in sites for key, site in parts.items() if is_enumerated(site)}
    return not summed.issuperset(structure.enumerated)
