"""Which sites ask to be enumerated, and whether they can be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger

from pyro_elbo_lab.programs.enumeration import (
    Site,
)
from pyro_elbo_lab.programs.pair import Program
from pyro_elbo_lab.programs.structure.factors import distribution_name, is_subsample


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


def hide_enumerated(model: Program) -> Program:
    """The model as a guide sees it that leaves out the sites that are to be summed out."""
    return poutine.block(model, hide_fn=lambda msg: mark_of(msg) == "parallel")


def mark_of(site: Site) -> str | None:
    is_latent = site["type"] == "sample" and not site["is_observed"]
    return (site["infer"] or {}).get("enumerate") if is_latent else None


def averaged_in(guide: Program, guide_trace: Any) -> dict[str, Averaged]:
    """The guide's enumerated sites, checked."""
    sites = {name: site for name, site in guide_trace.nodes.items() if not is_subsample(site)}
    found = {name: mark for name, site in sites.items() if (mark := mark_of(site))}
    if found and isinstance(poutine.unwrap(guide), GuideMessenger):
        raise NotImplementedError(
            f"Site '{min(found)}' of the guide asks for enumeration, which a GuideMessenger such "
            f"as {type(poutine.unwrap(guide)).__name__} cannot do: it runs model and guide as one "
            "program. Use a guide of the other kind, such as AutoNormal."
        )
    return averages_of(sites)


def averages_of(sites: Mapping[str, Site]) -> dict[str, Averaged]:
    found = {name: mark for name, site in sites.items() if (mark := mark_of(site))}
    for name, mark in found.items():
        _check_average(name, mark, sites[name])
    return {
        name: Averaged(
            how=mark,
            distribution=distribution_name(sites[name]["fn"]),
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
                f"values of its {distribution_name(site['fn'])} cannot be listed ({unlistable}). "
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


def check_enumerable(name: str, site: Site) -> None:
    mark = mark_of(site)
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
            f"in the guide, but the values of its {distribution_name(site['fn'])} cannot be "
            f"listed ({unlistable}). Sample '{name}' in the guide, or use a distribution of "
            "finite support without dependent dimensions."
        )
