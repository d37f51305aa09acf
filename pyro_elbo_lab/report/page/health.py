"""How well the reference's sampler did, from what its DataTree holds."""

from collections.abc import Iterator
from typing import NamedTuple

import xarray as xr
from arviz_stats.base import array_stats

from pyro_elbo_lab.report.page.numbers import number
from pyro_elbo_lab.statistics.reliability import MAX_R_HAT


class Line(NamedTuple):
    """One quantity: its name, its value as text, and what is good."""

    what: str
    value: str
    good: str


def health(tree: xr.DataTree) -> Iterator[Line]:
    """R-hat, ESS, divergences, energy, tree depth and step size, as far as the tree tells.

    >>> tree = xr.DataTree()
    >>> tree.attrs = {"r_hat_max": 1.004, "ess_min": 812.0}
    >>> [(line.what, line.value) for line in health(tree)]
    [('largest R-hat', '1.004'), ('smallest ESS', '812')]
    """
    if "r_hat_max" in tree.attrs:
        r_hat = number(float(tree.attrs["r_hat_max"]), decimals=3)
        yield Line("largest R-hat", r_hat, f"≤ {MAX_R_HAT}")
    if "ess_min" in tree.attrs:
        yield Line("smallest ESS", f"{float(tree.attrs['ess_min']):,.0f}", "≥ 400")
    if "sample_stats" in tree.children:
        yield from _transitions(tree["sample_stats"].dataset)


def _transitions(stats: xr.Dataset) -> Iterator[Line]:
    if "diverging" in stats:
        diverging = stats["diverging"].values
        yield Line("divergent transitions", f"{diverging.sum():,} of {diverging.size:,}", "0")
    if "energy" in stats and stats.sizes["draw"] > 3:
        # The rate at which energy is explored: Betancourt 2016, arXiv 1604.00695.
        smallest = float(array_stats.bfmi(stats["energy"].transpose("chain", "draw").values).min())
        yield Line("smallest E-BFMI of a chain", number(smallest), "≥ 0.3")
    for name in ("acceptance_rate", "acceptance_prob"):
        if name in stats:
            yield Line("mean acceptance rate", number(float(stats[name].mean())), "near its target")
    if "tree_depth" in stats:
        depth = stats["tree_depth"].values
        text = f"mean {depth.mean():.1f}, largest {depth.max():.0f}"
        yield Line("tree depth", text, "below the maximum")
    if "reached_max_treedepth" in stats:
        full = stats["reached_max_treedepth"].values
        yield Line("at the maximal tree depth", f"{full.sum():,} of {full.size:,}", "0")
    if "step_size" in stats:
        steps = stats["step_size"].isel(draw=-1).values
        text = f"{steps.min():.3g} to {steps.max():.3g}"
        yield Line("step size by chain", text, "alike in all chains")
