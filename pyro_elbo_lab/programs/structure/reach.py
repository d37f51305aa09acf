"""What may depend on sites that are summed out, and what that would cost."""

from collections.abc import Collection, Mapping

from pyro_elbo_lab.programs.enumeration import (
    Marginal,
    Site,
    check_inside,
    in_scope,
    is_enumerated,
    plates_of,
    variable,
)
from pyro_elbo_lab.programs.structure.factors import FactorKey, frames_of, summands
from pyro_elbo_lab.programs.structure.follow import Dependencies, tag_of
from pyro_elbo_lab.programs.structure.marks import Averaged


class NoAverageError(ValueError):
    """Averages over sites of the guide would take exponential time.

    Attributes:
        found: by name of these sites, why, and what to do.
    """

    def __init__(self, found: Mapping[str, str]) -> None:
        super().__init__(" ".join(found.values()))
        self.found = dict(found)


def check_reach(
    sites: Mapping[FactorKey, Site],
    found: Dependencies,
    averaged: Mapping[str, Averaged],
) -> None:
    """Refuse what shapes alone would not show: enumerated sites that are read outside of their
    plates, or when pyro.markov has given their dimension to another."""
    direct, _, escaped = found
    parts = {k: s for key, site in sites.items() for k, s in summands(key, site).items()}
    tags = {
        tag_of(key.name): (key, site)
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
        plates = [f.name for f in frames_of(sites[FactorKey("guide", name)]) if f.size > 1]
        if averaged[name].how == "sequential" and plates:
            why = (
                f"Python code makes numbers or branches of '{name}', which the guide enumerates in "
                f"plate '{plates[0]}': an average over all its combinations would take exponential "
                "time."
            )
            to_draw |= _drawn_instead(name, why, "Use tensor operators alone")
    if to_draw:
        raise NoAverageError(to_draw)


def refuse_unfollowed(sites: Mapping[FactorKey, Site], averaged: Mapping[str, Averaged]) -> None:
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
