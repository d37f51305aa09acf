"""What the sites of a run are."""

from typing import Any

from pyro import poutine
from pyro.distributions import ImproperUniform
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_elbo_lab.programs.dims import has_value, is_deterministic

__all__ = ["is_improper", "is_masked", "latents"]


def latents(trace: poutine.Trace) -> list[str]:
    """Names of the latent sites of a run: drawn, not observed, not deterministic."""
    return [
        name
        for name, site in trace.nodes.items()
        if has_value(site)
        and not site["is_observed"]
        and not is_deterministic(site)
        and not site_is_subsample(site)
    ]


def is_improper(site: Any) -> bool:
    """Whether a site has no density that can be normalized."""
    fn = site["fn"]
    if site["mask"] is False:
        return True
    while True:
        if isinstance(fn, ImproperUniform) or getattr(fn, "_mask", None) is False:
            return True
        if not hasattr(fn, "base_dist"):
            return False
        fn = fn.base_dist


def is_masked(site: Any) -> bool:
    """Whether some values of a site are masked out."""
    mask = site["mask"]
    return mask is False or (isinstance(mask, Tensor) and not bool(mask.all()))
