"""Which particles share which draws: cells of local plates, and what is global to them.

A non-linear bound of the joint weight collapses as data grows. Where latents are local to a plate,
every index of the plate is a *cell* with log-weights of its own, and

    value = mean_m [ sum of the shared factors + sum over cells of scale * F(l_cell,1..K) ].

All K particles of one outer particle m must then see the same shared latents: sum_i log mean_k is
otherwise no bound of log p(x).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pyro_elbo_lab.programs.structure.analysis import Structure
from pyro_elbo_lab.programs.structure.factors import FactorKey

Cells = frozenset[str]


@dataclass(frozen=True)
class Layout:
    """The part of the objective to which every factor and latent belongs.

    Attributes:
        cells: for every factor inside a non-linear bound the plates whose indices are its cells;
            the empty set stands for one joint weight. Factors that are missing are shared.
        local: latents that differ between the K inner particles.
        reason: why these plates, for messages.
        scale_inside: whether a subsample scale may stand inside the bound (only when joint
            weights were asked for by name).
    """

    cells: Mapping[FactorKey, Cells]
    local: frozenset[str]
    reason: str
    scale_inside: bool = False


def linear() -> Layout:
    """Everything shared: the value is a sum over factors, averaged over particles."""
    return Layout({}, frozenset(), "the bound is linear in the log-weights")


def joint(structure: Structure, reason: str, *, scale_inside: bool = False) -> Layout:
    """One weight over all sites."""
    cells = dict.fromkeys(structure.reads, Cells())
    return Layout(cells, frozenset(structure.latents), reason, scale_inside)


def lay_out(structure: Structure, local_plates: str | tuple[str, ...]) -> Layout:
    """Choose or check the local plates of a non-linear bound.

    Args:
        structure: dependencies of model and guide.
        local_plates: "auto" takes, from the outside in, every plate whose latents nothing outside
            the plate depends on; names insist on these plates; () asks for joint weights.

    Returns:
        The layout.

    Raises:
        ValueError: a plate that is unknown, has no latents, or whose latents are read outside.
    """
    if local_plates == "auto":
        return _automatic(structure)
    if isinstance(local_plates, str):
        raise ValueError(
            f"local_plates={local_plates!r}: expected 'auto' or a tuple of plate names such as "
            f"({local_plates!r},)."
        )
    if not local_plates:
        return joint(structure, "local_plates=() asks for joint weights", scale_inside=True)
    available = {p for latent in structure.latents.values() for p in latent.plates}
    for plate in local_plates:
        if plate not in available:
            raise ValueError(
                f"local_plates names '{plate}', but the vectorized plates that hold random latents "
                f"of the guide are {sorted(available) or 'none'}."
            )
    layout, complaint = _assign(structure, frozenset(local_plates), strict=False)
    if layout is None:
        raise ValueError(
            f"local_plates={local_plates!r}: {complaint}. The cells of a plate must not touch: "
            "leave the plate out of local_plates, or pass local_plates=() for joint weights."
        )
    return layout


def _automatic(structure: Structure) -> Layout:
    chosen = frozenset[str]()
    reasons = []
    held = {p for latent in structure.latents.values() for p in latent.plates}
    for plate in structure.plate_dims:
        if plate in held:
            layout, complaint = _assign(structure, chosen | {plate}, strict=True)
            if layout is None:
                reasons.append(complaint)
            else:
                chosen |= {plate}
    if chosen:
        layout, _ = _assign(structure, chosen, strict=True)
        assert layout is not None
        return layout
    return joint(structure, "; ".join(reasons) or "no plate holds random latents of the guide")


def _assign(
    structure: Structure, plates: frozenset[str], *, strict: bool
) -> tuple[Layout | None, str]:
    """Give every latent the cells of its plates; demote (or, if strict, refuse) the latents that
    are read in finer cells than their own; refuse those that are read outside their cells."""
    cells = {name: latent.plates & plates for name, latent in structure.latents.items()}
    cells = {name: own for name, own in cells.items() if own}
    demoted = True
    while demoted:
        demoted = False
        for key, reads in structure.reads.items():
            around = structure.plates[key] & plates
            for name in sorted(reads & cells.keys()):
                if not cells[name] <= around:
                    outside = ", ".join(sorted(cells[name] - around))
                    return None, (
                        f"site '{key.name}' of the {key.side} lies outside plate '{outside}' "
                        f"but depends on its latent '{name}'"
                    )
                if cells[name] != around:
                    if strict:
                        return None, (
                            f"site '{key.name}' of the {key.side} lies in the plates "
                            f"{sorted(around)} but depends on latent '{name}' of "
                            f"{sorted(cells[name])}"
                        )
                    del cells[name]
                    demoted = True
    if not cells:
        return None, f"no latent is local to the cells of {sorted(plates)}"
    inside = {
        key: structure.plates[key] & plates
        for key, reads in structure.reads.items()
        if reads & cells.keys()
    }
    reason = f"cells of plate {', '.join(repr(p) for p in sorted(plates))}"
    return Layout(inside, frozenset(cells), reason), ""
