"""What depends on what in a model and its guide, found by running them once.

A *latent* is a sample site at which the guide draws at random. Delta sites are not latents: they
are functions of latents and parameters. A *factor* is a sample site's log-density, on the side of
the model or of the guide. For every factor we record its plates and the latents that it reads, by
letting the latents' values carry their names through the program (`pyro.ops.provenance`). Sites of
the model that `enumeration` sums together are one factor, which reads what each of them reads.
Sites of the guide over which `expectations` averages are no latents: what reads them reads the
latents that they depend on.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.util import check_model_guide_match

from pyro_elbo_lab.programs.branches import Branch
from pyro_elbo_lab.programs.dims import refuse_complex
from pyro_elbo_lab.programs.enumeration import (
    Marginal,
    Site,
    is_enumerated,
    join,
    variable_or_none,
    variables_of,
)
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.pair import Pair, Program, traced
from pyro_elbo_lab.programs.rows import sites_by_position
from pyro_elbo_lab.programs.structure.factors import (
    FactorKey,
    distribution_name,
    factors,
    frames_of,
    is_evaluable,
    is_random,
    is_subsample,
    signature,
    summands,
)
from pyro_elbo_lab.programs.structure.follow import Dependencies, follow
from pyro_elbo_lab.programs.structure.marks import (
    Averaged,
    averaged_in,
    averages_of,
    check_enumerable,
    mark_of,
)
from pyro_elbo_lab.programs.structure.reach import check_reach, refuse_unfollowed
from pyro_elbo_lab.programs.structure.recall import Recall, Untraced, Values, aside, to_recall
from pyro_elbo_lab.programs.structure.runs import Again, first_enumerated_dim, run


@dataclass(frozen=True)
class Latent:
    """A site at which the guide draws at random.

    Attributes:
        name: the site's name.
        distribution: the name of the guide's distribution, for messages.
        plates: names of its vectorized plates.
        upstream: the latents that its distribution in the guide depends on.
        generation: 0 without upstream latents, else one more than the largest of theirs.
        reparameterized: whether its draws are differentiable in the guide's parameters.
        evaluable: whether log q can be evaluated at a value that was not just drawn. A flow without
            an inverse cannot; an autoregressive one could, by as many passes as it has dimensions,
            in which rounding errors grow.
        dtype: of its draws.
        device: of its draws.
        within: the enumerated sites of the guide for each value of which it is drawn.
    """

    name: str
    distribution: str
    plates: frozenset[str]
    upstream: frozenset[str]
    generation: int
    reparameterized: bool
    evaluable: bool
    dtype: torch.dtype
    device: torch.device
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class Structure:
    """The dependencies of one (model, guide) pair.

    Attributes:
        latents: by name, in the order in which the guide draws them.
        reads: for every factor the latents on which it depends, directly or not.
        plates: for every factor the names of its vectorized plates.
        parents: for every latent site of the model the latents on which its prior depends: itself
            among them where the guide has a value in between that depends on it.
        plate_dims: the dimension of every vectorized plate; outermost plates first.
        sums: for every factor of sites that are summed together these sites' names.
        enumerated: names of the model's sites that are summed out.
        escaped: the latents that became Python numbers or branches of the program.
        averaged: by name, the guide's sites whose values are enumerated.
        drawn: the guide's sites that are drawn though they are marked to be enumerated.
        scored: the guide's sites with a given value that need their score all the same, as what
            they are the density of was drawn outside of Pyro: pyro.factor(has_rsample=False).
        signature: what must not change between runs for this record to hold.
    """

    latents: Mapping[str, Latent]
    reads: Mapping[FactorKey, frozenset[str]]
    plates: Mapping[FactorKey, frozenset[str]]
    parents: Mapping[str, frozenset[str]]
    plate_dims: Mapping[str, int]
    sums: Mapping[FactorKey, tuple[str, ...]]
    enumerated: tuple[str, ...]
    escaped: frozenset[str]
    averaged: Mapping[str, Averaged]
    drawn: frozenset[str]
    scored: frozenset[str]
    signature: tuple[Any, ...]

    @property
    def max_plate_nesting(self) -> int:
        """The number of dimensions that the vectorized plates take."""
        return max((-dim for dim in self.plate_dims.values()), default=0)

    @property
    def has_branches(self) -> bool:
        """Whether the guide has sites that are enumerated sequentially."""
        return any(site.how == "sequential" for site in self.averaged.values())

    @property
    def points(self) -> tuple[str, ...]:
        """The model's latents that the guide sets to single values, which have no density."""
        return tuple(
            key.name
            for key, reads in self.reads.items()
            if key.side == "guide"
            and key.name in self.parents
            and key.name not in self.latents
            and key.name not in self.averaged
            and not reads
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is summed out or averaged over, for messages."""
        summed = {key: set(self.enumerated).intersection(names) for key, names in self.sums.items()}
        notes = tuple(
            f"summed out exactly: {join(n for n in self.sums[key] if n in names)} "
            f"(factor '{key.name}' of the model)"
            for key, names in summed.items()
            if names
        )
        if self.drawn:
            notes += (f"drawn though marked to be enumerated: {join(sorted(self.drawn))}",)
        return notes


class Analysis(NamedTuple):
    """What a look at a model and guide has found.

    Attributes:
        structure: their dependencies.
        sites: of the first run.
        recall: what it is to be repeated with, from `to_recall`.
        untraced: draws that Pyro has put into no trace, such as those of a ConjugateReparam.
    """

    structure: Structure
    sites: dict[FactorKey, Site]
    recall: Values
    untraced: Values


def analyze(
    pair: Pair,
    recall: Values | None = None,
    *,
    lenient: bool = False,
    branch: Branch | None = None,
) -> Analysis:
    """Run model and guide twice, without touching the random state, and record their structure.

    Args:
        pair: model and guide with their arguments.
        recall: from `to_recall`, what decides the structure of programs whose sites vary.
        lenient: warn of sites of the guide that the model does not have or observes, as Pyro does.
        branch: as for `run`.

    Returns:
        What was found.

    Raises:
        ValueError: where a latent of the model is missing in the guide or the other way round,
            where shapes disagree, or where sites cannot be summed out as they ask to be.
        NotImplementedError: a site asks for an enumeration that is not done here.
        NoAverageError: sites of the guide have to be drawn instead.
    """
    given = recall or {}
    with aside(Recall(given)), Untraced() as untraced:
        model_trace, guide_trace = run(pair, branch=branch)
    recall = to_recall(model_trace, guide_trace, ()) | given
    _check_messenger(pair, guide_trace)
    _warn_of_positions(pair.guide)
    enumerated = _check(model_trace, guide_trace, lenient)
    averaged = {} if branch is None else averaged_in(pair.guide, guide_trace)
    drawn = factors(model_trace, guide_trace)

    def again(watched: Program, carry: Messenger) -> tuple[Any, Any]:
        return run(pair.with_programs(watched), carry, branch=branch)

    found = _followed(pair.model, again, drawn, enumerated, averaged, recall)
    sites = drawn
    if enumerated or averaged:
        nesting = max((-f.dim for site in drawn.values() for f in frames_of(site)), default=0)
        first_dim = first_enumerated_dim(nesting)
        sites = _sum_out(pair, (*enumerated, *averaged), first_dim, recall, branch)
        if found:
            check_reach(sites, found, averaged)
    unmarked = branch.drawn if branch else frozenset[str]()
    structure = _build(drawn, sites, enumerated, averaged, unmarked, found, bool(given))
    return Analysis(structure, sites, recall, untraced.values)


def are_paired(sites: Mapping[FactorKey, Site]) -> bool:
    """Whether every latent of the model that is not summed out is drawn in the guide, and every
    site of the guide is a latent of the model."""
    parts = {k: s for key, site in sites.items() for k, s in summands(key, site).items()}
    guided = {key.name for key in parts if key.side == "guide"}
    latent = {
        key.name
        for key, site in parts.items()
        if key.side == "model" and not site["is_observed"]
        if key.name in guided or not is_enumerated(site)
    }
    return latent == guided


def assume(
    sites: Mapping[FactorKey, Site],
    unmarked: frozenset[str] = frozenset(),
    model: Program | None = None,
    again: Again | None = None,
    recall: Values | None = None,
) -> Structure:
    """The structure of one run as it was made. If it cannot be made again, nothing is known but
    its sites: each may depend on every latent.

    Args:
        sites: from `factors`.
        unmarked: sites of the guide that were drawn though they are marked to be enumerated.
        model: a Pyro model.
        again: (model, handler that sees the guide's sites) -> traces of model and guide, made as
            before.
        recall: from `to_recall`, what decides the structure of programs whose sites vary.

    Raises:
        NoAverageError: sites of the guide have to be drawn.
    """
    drawn = {k: s for key, site in sites.items() for k, s in summands(key, site).items()}
    guided = {k.name: site for k, site in drawn.items() if k.side == "guide"}
    averaged = averages_of({n: site for n, site in guided.items() if n not in unmarked})
    enumerated = tuple(
        key.name
        for key, site in drawn.items()
        if key.side == "model" and is_enumerated(site) and key.name not in averaged
    )
    found = None
    if averaged and model and again:
        found = _followed(model, again, drawn, enumerated, averaged, recall or {})
    if found:
        check_reach(sites, found, averaged)
    else:
        refuse_unfollowed(drawn, averaged)
    return _build(drawn, sites, enumerated, averaged, unmarked, found, bool(recall))


def _build(
    drawn: Mapping[FactorKey, Site],
    sites: Mapping[FactorKey, Site],
    enumerated: tuple[str, ...],
    averaged: Mapping[str, Averaged],
    unmarked: frozenset[str],
    found: Dependencies | None,
    recalled: bool,
) -> Structure:
    """The record of sites as they are drawn and, in the second argument, summed out."""
    plate_dims = {f.name: f.dim for site in drawn.values() for f in frames_of(site)}
    everything = frozenset(k.name for k in drawn if k.side == "guide")
    none = dict.fromkeys(drawn, frozenset[str]())
    direct, params, escaped = found or (none, none, everything)
    from_python = escaped if found else frozenset[str]()
    opaque = recalled and not all(
        is_evaluable(s) for k, s in drawn.items() if k.side == "guide" and is_random(s)
    )  # the draw of such a flow tells what it depends on, but here it was given
    escaped = everything if opaque else escaped
    latents: dict[str, Latent] = {}
    for key, site in drawn.items():
        if key.side == "guide" and is_random(site) and key.name not in averaged:
            upstream = (params[key] | escaped) & latents.keys()
            latents[key.name] = Latent(
                name=key.name,
                distribution=distribution_name(site["fn"]),
                plates=frozenset(f.name for f in frames_of(site)),
                upstream=upstream,
                generation=1 + max((latents[u].generation for u in upstream), default=-1),
                reparameterized=bool(getattr(site["fn"], "has_rsample", False)),
                evaluable=is_evaluable(site),
                dtype=site["value"].dtype,
                device=site["value"].device,
                within=_within(key, sites),
            )
    reads = {
        key: ((direct[key] | escaped) & latents.keys()) | ({key.name} & latents.keys())
        for key in drawn
    }
    parts = {key: summands(key, site) for key, site in sites.items()}
    return Structure(
        latents=latents,
        reads={
            key: frozenset().union(*(reads.get(part, latents.keys()) for part in parts[key]))
            for key in sites
        },
        plates={key: frozenset(f.name for f in frames_of(site)) for key, site in sites.items()},
        parents={
            key.name: (params[key] | (escaped - {key.name})) & latents.keys()
            for key, site in drawn.items()
            if key.side == "model" and not site["is_observed"]
        },
        plate_dims=dict(sorted(plate_dims.items(), key=lambda item: item[1])),
        sums={
            key: tuple(part.name for part in parts[key])
            for key, site in sites.items()
            if isinstance(site["fn"], Marginal)
        },
        enumerated=enumerated,
        escaped=from_python & latents.keys(),
        averaged=averaged,
        drawn=unmarked,
        scored=frozenset(key.name for key, site in drawn.items() if _is_scored(key, site)),
        signature=signature(sites),
    )


def _followed(
    model: Program,
    again: Again,
    drawn: Mapping[FactorKey, Site],
    enumerated: tuple[str, ...],
    averaged: Mapping[str, Averaged],
    recall: Values,
) -> Dependencies | None:
    try:
        found = follow(model, again, enumerated, averaged, recall)
        if found[0].keys() != drawn.keys():
            raise RuntimeError("the sites change with more than the random numbers of Pyro")
    except Exception as error:
        warn(
            f"Could not follow what depends on what ({type(error).__name__}: {error}). Every site "
            "is taken to depend on every latent: importance weights are joint, and fewer terms of "
            "an analytic KL are exact."
        )
        refuse_unfollowed(drawn, averaged)
        return None
    return found


def _sum_out(
    pair: Pair,
    enumerated: tuple[str, ...],
    first_dim: int,
    recall: Values,
    branch: Branch | None,
) -> dict[FactorKey, Site]:
    try:
        with aside(Recall(recall)):
            traces = run(pair, None, first_dim, branch)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        raise ValueError(
            f"The model runs, but fails while {join(map(repr, enumerated))} take all their values "
            f"at once to be summed out ({type(error).__name__}: {error}). They then have a new "
            "dimension to the left of all plates: count dimensions from the right, index with "
            "pyro.ops.indexing.Vindex, and make no Python numbers or branches of them. (A guide's "
            "site may have its values one after the other: infer={'enumerate': 'sequential'}.)"
        ) from error
    return factors(*traces)


def _is_scored(key: FactorKey, site: Site) -> bool:
    is_given = key.side == "guide" and site["is_observed"]
    return is_given and not getattr(site["fn"], "has_rsample", False)


def _within(key: FactorKey, sites: Mapping[FactorKey, Site]) -> tuple[str, ...]:
    """The guide's enumerated sites whose dimensions one of its other sites has."""
    found = variables_of(sites[key])
    guide = [(k.name, site) for k, site in sites.items() if k.side == "guide"]
    return tuple(name for name, site in guide if variable_or_none(site) in found)


def _check(model_trace: Any, guide_trace: Any, lenient: bool) -> tuple[str, ...]:
    """Refuse pairs that do not match. Returns the model's sites that are to be summed out."""
    model_sites, guide_sites = (
        {name: site for name, site in trace.nodes.items() if not is_subsample(site)}
        for trace in (model_trace, guide_trace)
    )
    enumerated = tuple(
        name for name, site in model_sites.items() if mark_of(site) and name not in guide_sites
    )
    for side, sites in (("model", model_sites), ("guide", guide_sites)):
        for name, site in sites.items():
            refuse_complex(name, site, side)
    for name in enumerated:
        check_enumerable(name, model_sites[name])
    for name, site in model_sites.items():
        if site["type"] != "sample" or site["is_observed"] or site["mask"] is False:
            continue
        if name not in guide_sites and name not in enumerated:
            raise ValueError(
                f"Latent site '{name}' of the model is missing in the guide, which has "
                f"{_names(guide_sites)}. Sample '{name}' in the guide, or pass obs= in the model."
            )
    for name, site in guide_sites.items():
        if site["type"] != "sample" or site["is_observed"] or site["infer"].get("is_auxiliary"):
            continue
        if name not in model_sites:
            _complain(
                lenient,
                f"Site '{name}' of the guide is missing in the model, which has "
                f"{_names(model_sites)}. Correct the name, or mark the guide's site with "
                "infer={'is_auxiliary': True} if the model is not meant to have it.",
            )
        elif model_sites[name]["is_observed"]:
            _complain(
                lenient,
                f"Site '{name}' is observed in the model but sampled in the guide: "
                "remove it from the guide.",
            )
    if is_validation_enabled():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found non-auxiliary vars")  # said above, with more
            matched = model_trace.copy()
            for name in enumerated:
                matched.remove_node(name)
            check_model_guide_match(matched, guide_trace)
    return enumerated


def _complain(lenient: bool, problem: str) -> None:
    if not lenient:
        raise ValueError(problem)
    if is_validation_enabled():
        warn(
            f"{problem} Its log q lowers the objective, and nothing makes up for that: the "
            "value need not bound log p(x)."
        )


def _check_messenger(pair: Pair, guide_trace: Any) -> None:
    """A GuideMessenger runs a model of its own, in which sites may be hidden."""
    messenger = poutine.unwrap(pair.guide)
    if not isinstance(messenger, GuideMessenger):
        return
    with aside():
        nodes = traced(poutine.replay(pair.model, trace=guide_trace), pair).nodes
    for name, site in nodes.items():
        if mark_of(site) and name not in guide_trace.nodes:
            raise NotImplementedError(
                f"Site '{name}' of the model asks for enumeration, but a GuideMessenger such as "
                f"{type(messenger).__name__} runs model and guide as one program and "
                "can leave out none of its sites. Use a guide of the other kind, such as "
                "AutoNormal, made of poutine.block(model, hide=[...])."
            )


def _warn_of_positions(guide: Program) -> None:
    for plate, kind in sites_by_position(guide).items():
        warn(
            f"Plate '{plate}' is subsampled, but {kind} has one parameter for each place in a "
            "batch and not for each row: its latents there belong to no row, and no bound follows. "
            "Use AutoNormal or AutoDelta for them, beside the other guide in an AutoGuideList."
        )


def _names(sites: Mapping[str, Site]) -> str:
    names = [n for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"]]
    return ", ".join(f"'{n}'" for n in names) or "no latent sites"
