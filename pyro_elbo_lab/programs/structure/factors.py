"""The sites that a log-weight is made of, and what tells one structure from another."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch

from pyro_elbo_lab.programs.dims import delta
from pyro_elbo_lab.programs.enumeration import (
    Marginal,
    Site,
    is_enumerated,
    marginalize,
)

Side = Literal["model", "guide"]


PARTICLE_PLATE = "num_particles_vectorized"


class FactorKey(NamedTuple):
    """A sample site's log-density, on one side."""

    side: Side
    name: str


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
    keyed = {FactorKey("model", name): site for name, site in marginalize(model, given).items()}
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


def is_random(site: Site) -> bool:
    """Whether a guide site draws at random: neither observed nor a Delta."""
    return not site["is_observed"] and delta(site["fn"]) is None


def is_subsample(site: Site) -> bool:
    """Whether a site is the subsample of a plate."""
    return site["type"] == "sample" and type(site["fn"]).__name__ == "_Subsample"


def frames_of(site: Site) -> list[Any]:
    return [f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE]


def distribution_name(fn: Any) -> str:
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
