"""Every number of a comparison as one xarray Dataset, computed block by block."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr

from pyro_elbo_lab.statistics.correlations import governed_spread
from pyro_elbo_lab.statistics.distances import Moments, noise_floors, standardized
from pyro_elbo_lab.statistics.mixing import rank_mixing
from pyro_elbo_lab.statistics.modes import discrete
from pyro_elbo_lab.statistics.reliability import Worst, worse
from pyro_elbo_lab.trust.comparison import posteriors
from pyro_elbo_lab.trust.comparison.approximation import Side, read
from pyro_elbo_lab.trust.comparison.blocks import Block, enumerated, varying_blocks
from pyro_elbo_lab.trust.comparison.scalars import joint_draws, scalars

_AT_ONCE = 64
"""Parameters worked on at once: few enough for the processor's cache. More are read at once."""


class Assembled(NamedTuple):
    """What a Comparison holds.

    `dataset` has all numbers over `approximation` and `parameter`, NaN where an approximation
    lacks a parameter; `notes` say what was left out; `worst` has the largest R-hat and the
    smallest effective sample size of the reference.
    """

    dataset: xr.Dataset
    notes: list[str]
    worst: Worst


def assemble(
    approximations: Mapping[str, xr.DataTree],
    reference: xr.DataTree,
    losses: Mapping[str, np.ndarray],
) -> Assembled:
    """Compute every number, reading the draws of one block of parameters at a time."""
    target = posteriors.posterior(reference, "reference")
    blocks, notes = varying_blocks(target)
    sides = []
    for name, tree in approximations.items():
        draws = posteriors.posterior(tree, name)
        notes += _notes_on_missing(name, draws, target)
        sides.append(Side.of(name, tree, draws, target, blocks))
    compared = [b for b in blocks if any(b.variable in side.draws for side in sides)]
    own = [_compare(block, sides, target) for block in compared]
    joined = xr.concat(own, "parameter")
    rows = [_row(side, reference, losses.get(side.name)) for side in sides]
    stacked = xr.concat(
        [row.reindex(parameter=joined["parameter"]) for row in rows], "approximation"
    )
    stacked = stacked.assign_coords(approximation=[side.name for side in sides])
    names = joined["parameter"].values.tolist()
    return Assembled(
        dataset=stacked.merge(joined),
        notes=notes,
        worst=worse(Worst(), names, joined["r_hat"].values, joined["ess"].values),
    )


def _compare(block: Block, sides: list[Side], target: xr.Dataset) -> xr.Dataset:
    """Compare all sides that have a block, and return what concerns the reference alone."""
    present = [side for side in sides if block.variable in side.draws]
    theirs = read(target, block, "reference", target)
    ours = [read(side.draws, block, side.name, target) for side in present]
    columns = []
    for start in range(0, len(block.labels), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        scale = theirs[part].mean((1, 2)), theirs[part].std((1, 2), ddof=1)
        r = Moments.of(standardized(theirs[part], *scale))
        for side, draws in zip(present, ours, strict=True):
            side.add(block.labels[part], Moments.of(standardized(draws[part], *scale)), r)
        mixing = rank_mixing(r.draws)
        own = {"r_hat": mixing.r_hat, "ess": mixing.ess, "discrete": discrete(r.sorted)}
        columns.append(noise_floors(r.draws) | own)
    return _over_parameters(_stacked(columns), block.labels).assign_coords(
        variable=("parameter", [block.variable] * len(block.labels)),
        element=("parameter", block.index),
    )


def _row(side: Side, reference: xr.DataTree, losses: np.ndarray | None) -> xr.Dataset:
    """Everything about one approximation, over its own parameters."""
    found = dict(
        zip(
            side.anchors.labels,
            zip(*governed_spread(joint_draws(side.anchors)[1]), strict=True),
            strict=True,
        )
    )
    governed = np.array([found.get(label, (np.nan, np.nan)) for label in side.labels])
    columns = _stacked(side.columns)
    columns |= {"governed_spread": governed[:, 0], "governed_bend": governed[:, 1]}
    return _over_parameters(columns, side.labels).assign(scalars(side, reference, losses))


def _stacked(columns: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([part[key] for part in columns]) for key in columns[0]}


def _over_parameters(columns: Mapping[str, np.ndarray], labels: list[str]) -> xr.Dataset:
    variables = {key: ("parameter", values) for key, values in columns.items()}
    return xr.Dataset(variables, coords={"parameter": labels})


def _notes_on_missing(name: str, draws: xr.Dataset, target: xr.Dataset) -> list[str]:
    sides = (("the reference", draws, target), (repr(name), target, draws))
    return [
        f"not compared, missing in {where}: {enumerated(missing)} (comparing {name!r})"
        for where, one, other in sides
        if (missing := [str(variable) for variable in one if variable not in other])
    ]
