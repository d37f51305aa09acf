"""One approximation beside the reference: its parameters, block by block."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import xarray as xr

from pyro_elbo_lab.statistics import joint
from pyro_elbo_lab.statistics.correlations import largest_difference, unit
from pyro_elbo_lab.statistics.distances import (
    Moments,
    differences,
    halves,
    is_constant,
    standardized,
    weighted_differences,
)
from pyro_elbo_lab.statistics.importance import ImportanceDiagnostics, diagnose
from pyro_elbo_lab.statistics.modes import missed_modes
from pyro_elbo_lab.trust.comparison import posteriors
from pyro_elbo_lab.trust.comparison.blocks import (
    Block,
    any_varies,
    evenly_spaced,
    labels_of,
    precision,
)

_WEIGHTED = (
    "mean_error_weighted",
    "mean_error_weighted_mcse",
    "sd_ratio_weighted",
    "sd_ratio_weighted_mcse",
)


@dataclass(frozen=True)
class Anchors:
    """Parameters, at most 100, whose correlations and joint distribution are compared.

    `draws` and `reference` have shape `(A, chain, draw)` and are standardized.
    """

    labels: list[str]
    draws: np.ndarray
    reference: np.ndarray

    @cached_property
    def units(self) -> tuple[np.ndarray, ...]:
        """Draws, reference and the reference's halves, as rows of length 1."""
        return tuple(map(unit, (self.draws, self.reference, *halves(self.reference))))


@dataclass(frozen=True)
class Side:
    """One approximation, and the columns that have been computed of it, block by block."""

    name: str
    tree: xr.DataTree
    draws: xr.Dataset
    importance: ImportanceDiagnostics | None
    anchors: Anchors
    columns: list[dict[str, np.ndarray]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        name: str,
        tree: xr.DataTree,
        draws: xr.Dataset,
        target: xr.Dataset,
        blocks: list[Block],
    ) -> "Side":
        """Check that there is something to compare, and read the anchors."""
        common = [block for block in blocks if block.variable in draws]
        if not common:
            raise ValueError(
                f"{name!r} and the reference have no varying parameter in common: {name!r} has "
                f"{sorted(map(str, draws))}, the reference {sorted(map(str, target))}"
            )
        chosen = evenly_spaced(common, joint.MAX_PARAMETERS)
        theirs = np.concatenate([read(target, b, "reference", target) for b in chosen])
        ours = np.concatenate([read(draws, b, name, target) for b in chosen])
        scale = theirs.mean((1, 2)), theirs.std((1, 2), ddof=1)
        standard = standardized(ours, *scale), standardized(theirs, *scale)
        anchors = Anchors(labels_of(chosen), *standard)
        return cls(name, tree, draws, _importance(name, tree, draws), anchors)

    def add(self, labels: list[str], z: Moments, r: Moments) -> None:
        """Compare some parameters, `z`, with the reference, `r`, both standardized."""
        columns = differences(z, r)
        columns["missed_mode"] = missed_modes(z.sorted, r.sorted, r.ess / r.sorted.shape[1])
        columns["extra_mode"] = missed_modes(r.sorted, z.sorted, z.ess / z.sorted.shape[1])
        columns |= self._correlation_errors(labels, z, r)
        if self.importance:
            columns |= weighted_differences(z.draws, r, self.importance.weights)
        else:
            columns |= dict.fromkeys(_WEIGHTED, np.full(len(labels), np.nan))
        self.columns.append(columns)
        self.labels.extend(labels)

    def _correlation_errors(
        self, labels: list[str], z: Moments, r: Moments
    ) -> Mapping[str, np.ndarray]:
        anchors = self.anchors
        own = np.array(labels)[:, None] == np.array(anchors.labels)
        pairs = zip((z.draws, r.draws, *halves(r.draws)), anchors.units, strict=True)
        ours, theirs, first, second = (unit(x) @ others.T for x, others in pairs)
        error, se = largest_difference(ours, theirs, own, z.ess, r.ess)
        floor, _ = largest_difference(first, second, own, r.ess, r.ess)
        return {
            "correlation_error": error,
            "correlation_error_mcse": se,
            "correlation_error_floor": floor,
        }


def read(draws: xr.Dataset, block: Block, name: str, target: xr.Dataset) -> np.ndarray:
    """The draws `(P, chain, draw)` of a block, in the order that the reference has them.

    Draws that differ by no more than rounding, as a point's do, are made equal.

    Raises:
        ValueError: if a draw is NaN or infinite, or the two sides do not match.
    """
    array = posteriors.aligned(draws[block.variable], target[block.variable], name)
    values = posteriors.elements(array, block.index)
    posteriors.check_finite(values, array, block.index, name)
    fixed = is_constant(values, precision(array))
    values[fixed] = values[fixed, :1, :1]
    return values


def _importance(name: str, tree: xr.DataTree, draws: xr.Dataset) -> ImportanceDiagnostics | None:
    log_weights = posteriors.log_weights(tree, draws, name)
    if log_weights is None or not any_varies(draws):  # a point mass has no density to weight
        return None
    try:
        return diagnose(log_weights)
    except ValueError as error:
        raise ValueError(f"sample_stats variable 'log_weight' of {name!r}: {error}") from error
