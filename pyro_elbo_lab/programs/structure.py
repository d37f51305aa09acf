"""What depends on what in a model and its guide, found by running them once.

A *latent* is a sample site at which the guide draws at random. Delta sites are not latents: they
are functions of latents and parameters. A *factor* is a sample site's log-density, on the side of
the model or of the guide. For every factor we record its plates and the latents that it reads, by
letting the latents' values carry their names through the program (`pyro.ops.provenance`). Sites of
the model that `enumeration` sums together are one factor, which reads what each of them reads.
Sites of the guide over which `expectations` averages are no latents: what reads them reads the
latents that they depend on.
"""

import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.util import check_model_guide_match
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_elbo_lab.programs.branches import Branch
from pyro_elbo_lab.programs.dims import delta, refuse_complex
from pyro_elbo_lab.programs.enumeration import (
    Marginal,
    Site,
    check_inside,
    in_scope,
    is_enumerated,
    join,
    marginalise,
    plates_of,
    variable,
    variable_or_none,
    variables_of,
)
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.pair import Pair, Program, traced
from pyro_elbo_lab.programs.rows import in_named_order, names_rows, replayed, sites_by_position
from pyro_elbo_lab.programs.state import random_states_kept

Side = Literal["model", "guide"]
Values = dict[str, Tensor]

PARTICLE_PLATE = "num_particles_vectorized"


class FactorKey(NamedTuple):
    """A sample site's log-density, on one side."""

    side: Side
    name: str


Reads = Mapping[FactorKey, frozenset[str]]
Dependencies = tuple[Reads, Reads, frozenset[str]]
Again = Callable[[Program, Messenger], tuple[Any, Any]]


@dataclass(frozen=True)
class Latent:
    """A site at which the guide draws at random.

    Attributes:
        name: the site's name.
        distribution: the name of the guide's distribution, for messages.
        plates: names of its vectorised plates.
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
class Averaged:
    """A site whose values the guide enumerates.

    Attributes:
        how: "parallel" or "sequential".
        distribution: the name of the guide's distribution, for messages.
        num_samples: how many draws stand in the place of all its values, None if it has all.
        reparameterized: whether such draws are differentiable in the guide's parameters.
    """

    how: str
    distribution: str
    num_samples: int | None
    reparameterized: bool


@dataclass(frozen=True)
class Structure:
    """The dependencies of one (model, guide) pair.

    Attributes:
        latents: by name, in the order in which the guide draws them.
        reads: for every factor the latents on which it depends, directly or not.
        plates: for every factor the names of its vectorised plates.
        parents: for every latent site of the model the latents on which its prior depends: itself
            among them where the guide has a value in between that depends on it.
        plate_dims: the dimension of every vectorised plate; outermost plates first.
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
        """The number of dimensions that the vectorised plates take."""
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


class Untraced(Messenger):
    """Notes draws that Pyro puts into no trace."""

    def __init__(self) -> None:
        super().__init__()
        self.values: Values = {}

    def _pyro_post_sample(self, msg: Site) -> None:
        if (msg["infer"] or {}).get("_do_not_trace") and not msg["is_observed"]:
            self.values[msg["name"]] = msg["value"]


class NoAverageError(ValueError):
    """Averages over sites of the guide would take exponential time.

    Attributes:
        found: by name of these sites, why, and what to do.
    """

    def __init__(self, found: Mapping[str, str]) -> None:
        super().__init__(" ".join(found.values()))
        self.found = dict(found)


def run(
    pair: Pair,
    while_guiding: AbstractContextManager[Any] | None = None,
    first_enumerated_dim: int | None = None,
    branch: Branch | None = None,
    particles: pyro.plate | None = None,
) -> tuple[Any, Any]:
    """Run the guide, then the model on the guide's draws.

    Args:
        pair: model and guide with their arguments.
        while_guiding: a handler that sees the guide's sites but not the model's.
        first_enumerated_dim: give the model's enumerated sites all their values at once, in this
            dimension and those to the left of it; if None they are drawn.
        branch: enumerate the guide's sites too, those that are enumerated sequentially in this
            branch; if None they are drawn.
        particles: a plate around both, of which enumeration is to know.

    Returns:
        The traces (model, guide), each with its subsample sites.

    Raises:
        ValueError: a plate of size 0.
    """
    model, guide = pair.model, pair.guide
    if branch is not None:
        guide = branch.unmarked(guide)
    if particles is not None:
        model, guide = particles(model), particles(guide)
    if first_enumerated_dim is not None:
        first_of_model = first_enumerated_dim if branch is None else None  # None: after the guide's
        model = poutine.enum(model, first_available_dim=first_of_model)
        if branch is not None:
            guide = poutine.enum(guide, first_available_dim=first_enumerated_dim)
    if branch is not None and not isinstance(poutine.unwrap(guide), GuideMessenger):
        guide = branch(guide)
    with naming_empty_plates():
        return _run(pair.with_programs(model, guide), while_guiding or nullcontext())


@contextmanager
def naming_empty_plates() -> Iterator[None]:
    """An error about a plate of size 0 says which."""
    try:
        yield
    except ZeroDivisionError as error:
        plate = _empty_plate(error)
        if plate is None:
            raise
        raise ValueError(
            f"Plate '{plate}' has size 0, expected at least 1: is the data that it ranges over "
            "empty?"
        ) from error


def _run(pair: Pair, while_guiding: AbstractContextManager[Any]) -> tuple[Any, Any]:
    unwrapped = poutine.unwrap(pair.guide)
    if isinstance(unwrapped, GuideMessenger):  # a GuideMessenger runs both at once
        with while_guiding, in_named_order():
            pair.guide(*pair.args, **pair.kwargs)
        subsamples = {n: s for n, s in unwrapped.trace.nodes.items() if is_subsample(s)}
        traces = unwrapped.get_traces()
        for trace in traces:
            trace.nodes.update(subsamples)
        return traces
    return replayed(pair, while_guiding)


def _empty_plate(error: ZeroDivisionError) -> str | None:
    """The plate whose constructor raised, None if something else did."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(frame.f_locals.get("self"), pyro.plate):
            return frame.f_locals.get("name")
    return None


def factors(model_trace: Any, guide_trace: Any) -> dict[FactorKey, Site]:
    """The sites that contribute to the log-weight, model first, those summed together as one."""
    model, guide = (
        {
            name: site
            for name, site in trace.nodes.items()
            if site["type"] == "sample"
            and not is_subsample(site)
            and not (site["infer"] or {}).get("_deterministic")
        }
        for trace in (model_trace, guide_trace)
    )
    given = frozenset(name for name, site in guide.items() if is_enumerated(site))
    keyed = {FactorKey("model", name): site for name, site in marginalise(model, given).items()}
    return keyed | {FactorKey("guide", name): site for name, site in guide.items()}


def summands(key: FactorKey, site: Site) -> dict[FactorKey, Site]:
    """The sites whose log-densities make up a factor: itself, unless several are summed."""
    if not isinstance(site["fn"], Marginal):
        return {key: site}
    return {FactorKey(key.side, name): summed for name, summed in site["fn"].sites.items()}


def signature(sites: Mapping[FactorKey, Site]) -> tuple[Any, ...]:
    """What `Structure` was derived from, cheap enough to compare at every evaluation."""
    return tuple(
        (
            key,
            site["is_observed"],
            getattr(site["fn"], "has_rsample", False),
            tuple(f.name for f in site["cond_indep_stack"] if f.name != PARTICLE_PLATE),
            signature(summands(key, site)) if isinstance(site["fn"], Marginal) else (),
        )
        for key, site in sites.items()
    )


def difference(expected: tuple[Any, ...], found: tuple[Any, ...]) -> str:
    """The first difference of two signatures in words, with the site's name."""
    one, other = ({row[0]: row[1:] for row in rows} for rows in (expected, found))
    for key in [*other, *one]:
        where = f"'{key.name}' of the {key.side}"
        if key not in one:
            return f"site {where} was not there before"
        if key not in other:
            return f"site {where} is missing"
        if one[key] != other[key]:
            (_, _, before, *_), (_, _, now, *_) = one[key], other[key]
            if before != now:
                return f"site {where} is in the plates {list(now)}, before in {list(before)}"
            return f"site {where} is of another kind than before"
    return "the sites come in another order"


class Recall(Messenger):
    """Gives sites the values of an earlier run. Unlike `poutine.replay` it leaves a site's `infer`
    alone, where a GuideMessenger keeps the prior of this run."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Site) -> None:
        if msg["is_observed"] or msg["done"]:  # such as by replay, whose value knows its origin
            return
        value = self.values.get(_recalled_as(msg))
        if value is None and is_subsample(msg):  # the guide's plate has fewer or more rows
            value = self.values.get(_named_as(msg))
        if value is not None:
            msg["done"] = True
            msg["value"] = value


def to_recall(model_trace: Any, guide_trace: Any, latents: Collection[str]) -> Values:
    """The subsamples of all plates, and the draws of the named latents."""
    sites = [*model_trace.nodes.items(), *guide_trace.nodes.items()]
    plates = [site for _, site in sites if is_subsample(site)]
    values = {_named_as(site): site["value"] for site in plates if names_rows(site)}
    values |= {_recalled_as(site, len(site["value"])): site["value"] for site in plates}
    drawn = guide_trace.nodes
    return values | {name: drawn[name]["value"] for name in latents if name in drawn}


def _named_as(site: Site) -> str:
    return f"{site['name']} named of {site['fn'].size}"


def _recalled_as(site: Site, rows: int | None = None) -> str:
    """A plate of another size is another plate, whose subsample has to be drawn."""
    if not is_subsample(site):
        return site["name"]
    return f"{site['name']} {rows or site['fn'].subsample_size} of {site['fn'].size}"


def analyse(
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
    averaged = {} if branch is None else _averaged(pair.guide, guide_trace)
    drawn = factors(model_trace, guide_trace)

    def again(watched: Program, carry: Messenger) -> tuple[Any, Any]:
        return run(pair.with_programs(watched), carry, branch=branch)

    found = _followed(pair.model, again, drawn, enumerated, averaged, recall)
    sites = drawn
    if enumerated or averaged:
        nesting = max((-f.dim for site in drawn.values() for f in _plates(site)), default=0)
        first_dim = first_enumerated_dim(nesting)
        sites = _sum_out(pair, (*enumerated, *averaged), first_dim, recall, branch)
        if found:
            _check_reach(sites, found, averaged)
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
    averaged = _averages({n: site for n, site in guided.items() if n not in unmarked})
    enumerated = tuple(
        key.name
        for key, site in drawn.items()
        if key.side == "model" and is_enumerated(site) and key.name not in averaged
    )
    found = None
    if averaged and model and again:
        found = _followed(model, again, drawn, enumerated, averaged, recall or {})
    if found:
        _check_reach(sites, found, averaged)
    else:
        _refuse_unfollowed(drawn, averaged)
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
    plate_dims = {f.name: f.dim for site in drawn.values() for f in _plates(site)}
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
                distribution=_distribution_name(site["fn"]),
                plates=frozenset(f.name for f in _plates(site)),
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
        plates={key: frozenset(f.name for f in _plates(site)) for key, site in sites.items()},
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


def hide_enumerated(model: Program) -> Program:
    """The model as a guide sees it that leaves out the sites that are to be summed out."""
    return poutine.block(model, hide_fn=lambda msg: _mark(msg) == "parallel")


def first_enumerated_dim(nesting: int, at_once: bool = False) -> int:
    """The rightmost dimension for enumerated sites: left of the plates and, if they run at once,
    the particles."""
    return -nesting - 2 if at_once else -nesting - 1


def _followed(
    model: Program,
    again: Again,
    drawn: Mapping[FactorKey, Site],
    enumerated: tuple[str, ...],
    averaged: Mapping[str, Averaged],
    recall: Values,
) -> Dependencies | None:
    try:
        found = _follow(model, again, enumerated, averaged, recall)
        if found[0].keys() != drawn.keys():
            raise RuntimeError("the sites change with more than the random numbers of Pyro")
    except Exception as error:
        warn(
            f"Could not follow what depends on what ({type(error).__name__}: {error}). Every site "
            "is taken to depend on every latent: importance weights are joint, and fewer terms of "
            "an analytic KL are exact."
        )
        _refuse_unfollowed(drawn, averaged)
        return None
    return found


def _follow(
    model: Program,
    again: Again,
    enumerated: tuple[str, ...],
    averaged: Mapping[str, Averaged],
    recall: Values,
) -> Dependencies:
    """For every factor the latents that it reads, the same for its parameters alone, and the
    latents that left the tensor world. Enumerated sites, drawn or not, count as read too."""
    if enumerated:
        model = _CarryEnumerated(enumerated)(model)
    for grad in (False, True):  # most programs need none, some differentiate something themselves
        carry = _CarryNames(averaged)
        with (
            aside(Recall(recall)),
            torch.set_grad_enabled(grad),
            pyro.validation_enabled(False),
            _Escapes() as escapes,
        ):
            try:
                found = factors(*again(model, carry))
                carried = {
                    k: s for key, site in found.items() for k, s in summands(key, site).items()
                }
                direct = {key: _provenance(site, site["value"]) for key, site in carried.items()}
                params = {key: _provenance(site, _plain(site)) for key, site in carried.items()}
            except RuntimeError:
                if grad:
                    raise
            else:
                break
    return direct, params, escapes.names


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


def _check_reach(
    sites: Mapping[FactorKey, Site],
    found: Dependencies,
    averaged: Mapping[str, Averaged],
) -> None:
    """Refuse what shapes alone would not show: enumerated sites that are read outside of their
    plates, or when pyro.markov has given their dimension to another."""
    direct, _, escaped = found
    parts = {k: s for key, site in sites.items() for k, s in summands(key, site).items()}
    tags = {
        _tag(key.name): (key, site)
        for key, site in parts.items()
        if (key.side == "guide" and key.name in averaged)
        or (key.side == "model" and key.name not in averaged and is_enumerated(site))
    }
    guided = {tag: read for tag, read in tags.items() if read[0].side == "guide"}
    _check_averages(sites, direct, guided)
    _check_branches(
        [key.name for tag, (key, _) in guided.items() if tag in escaped], sites, averaged
    )
    for key, site in parts.items():
        for tag in sorted(direct[key] & tags.keys()):
            other, read = tags[tag]
            if other.side == "model":
                check_inside(key.name, site, other.name, read)
            if is_enumerated(read) and variable(read) not in in_scope(site):
                raise ValueError(
                    f"Site '{key.name}' depends on '{other.name}', which is summed out and which "
                    "pyro.markov has put out of its scope. Raise the history= of pyro.markov."
                )


def _check_averages(
    sites: Mapping[FactorKey, Site],
    direct: Mapping[FactorKey, frozenset[str]],
    tags: Mapping[str, tuple[FactorKey, Site]],
) -> None:
    to_draw: dict[str, str] = {}
    for key, site in sites.items():
        parts = summands(key, site)
        for tag in sorted(tags.keys() & frozenset().union(*(direct[part] for part in parts))):
            other, read = tags[tag]
            try:
                for part, summed in parts.items():
                    if tag in direct[part]:
                        check_average(part, summed, other.name, read)
                check_average(key, site, other.name, read)
            except NoAverageError as error:
                to_draw = error.found | to_draw
    if to_draw:
        raise NoAverageError(to_draw)


def _check_branches(
    names: Collection[str],
    sites: Mapping[FactorKey, Site],
    averaged: Mapping[str, Averaged],
) -> None:
    """Refuse Python code on all elements of a plate, which have one value in each run."""
    to_draw: dict[str, str] = {}
    for name in names:
        plates = [f.name for f in _plates(sites[FactorKey("guide", name)]) if f.size > 1]
        if averaged[name].how == "sequential" and plates:
            why = (
                f"Python code makes numbers or branches of '{name}', which the guide enumerates in "
                f"plate '{plates[0]}': an average over all its combinations would take exponential "
                "time."
            )
            to_draw |= _drawn_instead(name, why, "Use tensor operators alone")
    if to_draw:
        raise NoAverageError(to_draw)


def _refuse_unfollowed(sites: Mapping[FactorKey, Site], averaged: Mapping[str, Averaged]) -> None:
    """Refuse sites that have one value in each run, where shapes do not tell what reads them and
    it was not followed either."""
    found: dict[str, str] = {}
    for name, one in averaged.items():
        read = sites[FactorKey("guide", name)]
        for key, site in sites.items():
            plate = _plate_left(site, read)
            if one.how == "sequential" and plate is not None:
                why = (
                    f"Site '{key.name}' of the {key.side} lies outside plate '{plate}', in which "
                    f"the guide enumerates '{name}', and it is not known whether it depends on "
                    "it: an average over all its combinations would take exponential time."
                )
                found |= _drawn_instead(name, why, f"Move '{key.name}' into the plate")
    if found:
        raise NoAverageError(found)


def check_average(key: FactorKey, site: Site, other: str, read: Site) -> None:
    """Raise an error if a site lies outside a plate of a site of the guide that is enumerated there
    and that it reads.

    Raises:
        NoAverageError: so it is.
    """
    plate = _plate_left(site, read)
    if plate is None:
        return
    if isinstance(site["fn"], Marginal):
        why = (
            "Expected model enumeration to be no more global than guide enumeration, but the "
            f"sum over discrete sites of the model among '{key.name}' takes in all of plate "
            f"'{plate}', in which the guide enumerates '{other}': the average of its "
            "logarithm would take exponential time."
        )
        raise NoAverageError(_drawn_instead(other, why, "Enumerate these sites in the guide too"))
    why = (
        f"Site '{key.name}' of the {key.side} lies outside plate '{plate}' but depends on "
        f"'{other}', which the guide enumerates within it: an average over all its combinations "
        "would take exponential time."
    )
    raise NoAverageError(_drawn_instead(other, why, f"Move '{key.name}' into the plate"))


def _drawn_instead(name: str, why: str, remedy: str) -> dict[str, str]:
    return {
        name: f"{why} So '{name}' is drawn, without bias but with noise. {remedy} to have "
        f"'{name}' enumerated, or remove its infer={{'enumerate': ...}} from the guide."
    }


def _plate_left(site: Site, read: Site) -> str | None:
    """A plate of one site that another lies outside of."""
    around = {f.name for f in plates_of(site)}
    return next((f.name for f in plates_of(read) if f.name not in around), None)


@contextmanager
def aside(within: AbstractContextManager[Any] | None = None) -> Iterator[None]:
    """Run programs without a trace of it: random state and enclosing handlers do not notice.

    Args:
        within: a handler that the programs run under, in place of those around.
    """
    with random_states_kept(), poutine.block(), within or nullcontext():
        yield


def is_random(site: Site) -> bool:
    """Whether a guide site draws at random: neither observed nor a Delta."""
    return not site["is_observed"] and delta(site["fn"]) is None


def is_subsample(site: Site) -> bool:
    """Whether a site is the subsample of a plate."""
    return site["type"] == "sample" and type(site["fn"]).__name__ == "_Subsample"


def _plates(site: Site) -> list[Any]:
    return [f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE]


def _distribution_name(fn: Any) -> str:
    wrappers = ("Independent", "ExpandedDistribution", "MaskedDistribution")
    while type(fn).__name__ in wrappers:
        fn = fn.base_dist
    return type(fn).__name__


def _is_autoregressive(transform: Any) -> bool:
    parts = getattr(transform, "parts", [])
    return getattr(transform, "autoregressive", False) or any(map(_is_autoregressive, parts))


def is_evaluable(site: Site) -> bool:
    """Whether log q can be evaluated at a value that was not just drawn, see `Latent`."""
    if any(map(_is_autoregressive, getattr(site["fn"], "transforms", []))):
        return False
    value = site["value"].detach().clone()
    try:
        with torch.no_grad():
            site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    except (KeyError, NotImplementedError):
        return False
    return True


def _plain(site: Site) -> Any:
    return detach_provenance(site["value"])


def _provenance(site: Site, value: Any) -> frozenset[str]:
    try:
        return get_provenance(site["fn"].log_prob(value, *site["args"], **site["kwargs"]))
    except (KeyError, NotImplementedError):  # a flow that knows only its own last draw
        return get_provenance(site["value"]) - {site["name"]}


class _CarryNames(Messenger):
    """Lets the value of each random draw carry its own name and those of its upstream draws, that
    of an enumerated site a tag in the place of its name and of those of enumerated ones."""

    def __init__(self, averaged: Mapping[str, Averaged]) -> None:
        super().__init__()
        self.averaged = averaged

    def _pyro_post_sample(self, msg: Site) -> None:
        if not is_subsample(msg) and is_random(msg):
            value, name = _plain(msg), msg["name"]
            upstream = get_provenance(msg["value"]) | _provenance(msg, value)
            if name in self.averaged:
                upstream, name = _untagged(upstream), _tag(name)
            msg["value"] = track_provenance(value, upstream | {name})


_TAG = "summed out: "


def _tag(name: str) -> str:
    return _TAG + name


def _untagged(names: frozenset[str]) -> frozenset[str]:
    return frozenset(name for name in names if not name.startswith(_TAG))


class _CarryEnumerated(Messenger):
    """Lets the values of enumerated sites carry their own name, but not those of the enumerated
    sites before them: each has a dimension of its own."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names

    def _pyro_post_sample(self, msg: Site) -> None:
        if msg["name"] in self.names:
            carried = _untagged(get_provenance(msg["value"])) | {_tag(msg["name"])}
            msg["value"] = track_provenance(_plain(msg), carried)


class _Escapes(TorchFunctionMode):
    """Notes latents that leave the tensor world (`.item()`, `bool`, `numpy`): anything may
    depend on them from there on."""

    _EXITS = frozenset(
        {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: frozenset[str] = frozenset()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._EXITS:
            self.names |= get_provenance(list(args))
        return func(*args, **(kwargs or {}))


def _check(model_trace: Any, guide_trace: Any, lenient: bool) -> tuple[str, ...]:
    """Refuse pairs that do not match. Returns the model's sites that are to be summed out."""
    model_sites, guide_sites = (
        {name: site for name, site in trace.nodes.items() if not is_subsample(site)}
        for trace in (model_trace, guide_trace)
    )
    enumerated = tuple(
        name for name, site in model_sites.items() if _mark(site) and name not in guide_sites
    )
    for side, sites in (("model", model_sites), ("guide", guide_sites)):
        for name, site in sites.items():
            refuse_complex(name, site, side)
    for name in enumerated:
        _check_enumerable(name, model_sites[name])
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


def _mark(site: Site) -> str | None:
    is_latent = site["type"] == "sample" and not site["is_observed"]
    return (site["infer"] or {}).get("enumerate") if is_latent else None


def _averaged(guide: Program, guide_trace: Any) -> dict[str, Averaged]:
    """The guide's enumerated sites, checked."""
    sites = {name: site for name, site in guide_trace.nodes.items() if not is_subsample(site)}
    found = {name: mark for name, site in sites.items() if (mark := _mark(site))}
    if found and isinstance(poutine.unwrap(guide), GuideMessenger):
        raise NotImplementedError(
            f"Site '{min(found)}' of the guide asks for enumeration, which a GuideMessenger such "
            f"as {type(poutine.unwrap(guide)).__name__} cannot do: it runs model and guide as one "
            "program. Use a guide of the other kind, such as AutoNormal."
        )
    return _averages(sites)


def _averages(sites: Mapping[str, Site]) -> dict[str, Averaged]:
    found = {name: mark for name, site in sites.items() if (mark := _mark(site))}
    for name, mark in found.items():
        _check_average(name, mark, sites[name])
    return {
        name: Averaged(
            how=mark,
            distribution=_distribution_name(sites[name]["fn"]),
            num_samples=sites[name]["infer"].get("num_samples"),
            reparameterized=bool(getattr(sites[name]["fn"], "has_rsample", False)),
        )
        for name, mark in found.items()
    }


def _check_average(name: str, mark: str, site: Site) -> None:
    num_samples = site["infer"].get("num_samples")
    if mark not in ("parallel", "sequential"):
        raise ValueError(
            f"Site '{name}' of the guide asks for enumerate={mark!r}; expected 'parallel' or "
            "'sequential'."
        )
    if num_samples is None:
        unlistable = _unlistable(site)
        if unlistable:
            raise ValueError(
                f"Site '{name}' of the guide is marked infer={{'enumerate': '{mark}'}}, but the "
                f"values of its {_distribution_name(site['fn'])} cannot be listed ({unlistable}). "
                "Remove the mark to draw it, or use a distribution of finite support without "
                "dependent dimensions."
            )
    elif mark == "sequential" or num_samples < 2:
        raise ValueError(
            f"Site '{name}' of the guide asks for num_samples={num_samples!r} with "
            f"enumerate='{mark}'; expected at least 2 samples with enumerate='parallel'."
        )


def _unlistable(site: Site) -> str | None:
    """Why the values of a distribution cannot be listed, None if they can."""
    try:
        with torch.no_grad():
            site["fn"].enumerate_support(expand=False)
    except (NotImplementedError, AttributeError) as error:
        return str(error) or type(error).__name__
    return None


def _check_enumerable(name: str, site: Site) -> None:
    mark = _mark(site)
    if mark != "parallel":
        raise NotImplementedError(
            f"Site '{name}' of the model asks for enumerate={mark!r}; sites of the model can be "
            "summed out with infer={'enumerate': 'parallel'} only."
        )
    if site["infer"].get("num_samples") is not None:
        raise NotImplementedError(
            f"Site '{name}' of the model asks for num_samples={site['infer']['num_samples']} "
            "instead of all its values (tensor Monte Carlo). Remove num_samples to sum it out "
            "exactly, or sample it in the guide."
        )
    unlistable = _unlistable(site)
    if unlistable:
        raise ValueError(
            f"Site '{name}' of the model is marked infer={{'enumerate': 'parallel'}} and missing "
            f"in the guide, but the values of its {_distribution_name(site['fn'])} cannot be "
            f"listed ({unlistable}). Sample '{name}' in the guide, or use a distribution of "
            "finite support without dependent dimensions."
        )


def _check_messenger(pair: Pair, guide_trace: Any) -> None:
    """A GuideMessenger runs a model of its own, in which sites may be hidden."""
    messenger = poutine.unwrap(pair.guide)
    if not isinstance(messenger, GuideMessenger):
        return
    with aside():
        nodes = traced(poutine.replay(pair.model, trace=guide_trace), pair).nodes
    for name, site in nodes.items():
        if _mark(site) and name not in guide_trace.nodes:
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
