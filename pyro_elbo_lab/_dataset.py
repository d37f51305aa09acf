"""Every number of a comparison as one xarray Dataset, computed block by block."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import xarray as xr

from pyro_elbo_lab import _draws, _joint, _predictive
from pyro_elbo_lab._blocks import (
    Block,
    any_varies,
    enumerated,
    evenly_spaced,
    labels_of,
    varying_blocks,
)
from pyro_elbo_lab._chains import mixing
from pyro_elbo_lab._correlations import correlations, governed_spread, largest_difference
from pyro_elbo_lab._distances import (
    Moments,
    differences,
    halves,
    noise_floors,
    standardised,
    weighted_differences,
)
from pyro_elbo_lab._importance import ImportanceDiagnostics, diagnose
from pyro_elbo_lab._modes import missed_modes
from pyro_elbo_lab._progress import late_fall

DIAGNOSTICS = (
    "k_hat",
    "k_hat_threshold",
    "elbo",
    "elbo_se",
    "log_evidence",
    "log_evidence_se",
    "weight_ess",
)

JOINT = (*_joint.COLUMNS, "joint_parameters", "joint_draws")
COST = ("seconds", "gradient_evaluations")
PROGRESS = ("loss_fall", "loss_fall_se")
SCALARS = (*DIAGNOSTICS, *JOINT, *_predictive.COLUMNS, *COST, *PROGRESS)
"""Numbers of which an approximation has one."""


class Assembled(NamedTuple):
    """What a Comparison holds.

    ``dataset`` has all numbers over ``approximation`` and ``parameter``, NaN where an approximation
    lacks a parameter; ``notes`` say what was left out; ``r_hat`` is the largest of the reference,
    with its parameter, ``ess`` the smallest effective sample size.
    """

    dataset: xr.Dataset
    notes: list[str]
    r_hat: tuple[str, float]
    ess: float


def assemble(
    approximations: Mapping[str, xr.DataTree],
    reference: xr.DataTree,
    losses: Mapping[str, np.ndarray],
) -> Assembled:
    """Compute every number, reading the draws of one block of parameters at a time."""
    target = _draws.posterior(reference, "reference")
    blocks, notes = varying_blocks(target)
    sides = []
    for name, tree in approximations.items():
        draws = _draws.posterior(tree, name)
        notes += _notes_on_missing(name, draws, target)
        sides.append(_side(name, tree, draws, target, blocks))
    floors, labels, elements = [], [], []
    r_hat, ess = ("", -np.inf), np.inf
    for block in blocks:
        present = [side for side in sides if block.variable in side.draws]
        if not present:
            continue
        raw = _draws.elements(target[block.variable], block.index)
        r = Moments.of(standardised(raw, raw))
        for side in present:
            side.add(block, target[block.variable], raw, r)
        floors.append(noise_floors(r.draws))
        labels += block.labels
        elements.append((block.variable, block.index))
        r_hat = max(r_hat, (block.labels[r.r_hat.argmax()], r.r_hat.max()), key=lambda x: x[1])
        ess = min(ess, float(r.ess.min()))
    rows = {side.name: _row(side, reference, losses.get(side.name)) for side in sides}
    joined = _over_parameters(_stacked(floors), labels).assign_coords(
        variable=("parameter", [name for name, index in elements for _ in index]),
        element=("parameter", np.concatenate([index for _, index in elements])),
    )
    stacked = xr.concat(
        [row.reindex(parameter=joined["parameter"]) for row in rows.values()], "approximation"
    )
    dataset = stacked.assign_coords(approximation=list(rows)).merge(joined)
    return Assembled(dataset, notes, r_hat, ess)


@dataclass(frozen=True)
class _Anchors:
    """Parameters, at most 100, whose correlations and joint distribution are compared.

    ``draws`` and ``reference`` have shape ``(A, chain, draw)`` and are standardised.
    """

    labels: list[str]
    draws: np.ndarray
    reference: np.ndarray


@dataclass(frozen=True)
class _Side:
    """One approximation, and the columns that have been computed of it, block by block."""

    name: str
    tree: xr.DataTree
    draws: xr.Dataset
    found: ImportanceDiagnostics | None
    anchors: _Anchors
    columns: list[dict[str, np.ndarray]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def add(self, block: Block, target: xr.DataArray, raw: np.ndarray, r: Moments) -> None:
        """Compare the parameters of a block, whose reference is ``raw`` and ``r``."""
        z = Moments.of(standardised(_elements(self.name, self.draws, block, target), raw))
        columns = differences(z, r)
        share_independent = r.ess / r.sorted.shape[1]
        columns["missed_mode"] = missed_modes(z.sorted, r.sorted, share_independent)
        columns["extra_mode"] = missed_modes(r.sorted, z.sorted, z.ess / z.sorted.shape[1])
        columns |= self._correlation_errors(block, z, r)
        if self.found:
            columns |= weighted_differences(z.draws, r, self.found.weights)
        else:
            columns |= dict.fromkeys(_WEIGHTED, np.full(len(raw), np.nan))
        self.columns.append(columns)
        self.labels.extend(block.labels)

    def _correlation_errors(self, block: Block, z: Moments, r: Moments) -> dict[str, np.ndarray]:
        anchors = self.anchors
        own = np.array(block.labels)[:, None] == np.array(anchors.labels)
        ours = correlations(_flat(z.draws), _flat(anchors.draws))
        theirs = correlations(_flat(r.draws), _flat(anchors.reference))
        error, se = largest_difference(ours, theirs, own, z.ess, r.ess)
        pair = zip(halves(r.draws), halves(anchors.reference), strict=True)
        first, second = (correlations(_flat(x), _flat(y)) for x, y in pair)
        floor, _ = largest_difference(first, second, own, r.ess, r.ess)
        return {
            "correlation_error": error,
            "correlation_error_mcse": se,
            "correlation_error_floor": floor,
        }


_WEIGHTED = (
    "mean_error_weighted",
    "mean_error_weighted_mcse",
    "sd_ratio_weighted",
    "sd_ratio_weighted_mcse",
)


def _side(
    name: str, tree: xr.DataTree, draws: xr.Dataset, target: xr.Dataset, blocks: list[Block]
) -> _Side:
    common = [block for block in blocks if block.variable in draws]
    if not common:
        raise ValueError(
            f"{name!r} and the reference have no varying parameter in common: {name!r} has "
            f"{sorted(map(str, draws))}, the reference {sorted(map(str, target))}"
        )
    found = _diagnostics(name, tree, draws)
    chosen = evenly_spaced(common, _joint.MAX_PARAMETERS)
    raw = [_draws.elements(target[block.variable], block.index) for block in chosen]
    ours = [
        standardised(_elements(name, draws, block, target[block.variable]), theirs)
        for block, theirs in zip(chosen, raw, strict=True)
    ]
    theirs = [standardised(x, x) for x in raw]
    anchors = _Anchors(labels_of(chosen), np.concatenate(ours), np.concatenate(theirs))
    return _Side(name, tree, draws, found, anchors)


def _elements(name: str, draws: xr.Dataset, block: Block, target: xr.DataArray) -> np.ndarray:
    array = _draws.aligned(draws[block.variable], target, name)
    values = _draws.elements(array, block.index)
    _draws.check_finite(values, array, block.index, name)
    return values


def _diagnostics(name: str, tree: xr.DataTree, draws: xr.Dataset) -> ImportanceDiagnostics | None:
    log_weights = _draws.log_weights(tree, draws, name)
    if log_weights is None or not any_varies(draws):  # a point mass has no density to weight
        return None
    try:
        return diagnose(log_weights)
    except ValueError as error:
        raise ValueError(f"sample_stats variable 'log_weight' of {name!r}: {error}") from error


def _row(side: _Side, reference: xr.DataTree, losses: np.ndarray | None) -> xr.Dataset:
    """Return everything about one approximation, over its own parameters."""
    scalars: dict[str, float] = dict.fromkeys(DIAGNOSTICS, np.nan)
    if side.found:
        scalars = {key: getattr(side.found, key) for key in DIAGNOSTICS}
    ours, theirs = _thinned(side.anchors.draws), _thinned(side.anchors.reference)
    n = min(len(ours), len(theirs))
    ours, theirs = (x[np.linspace(0, len(x) - 1, n).astype(int)] for x in (ours, theirs))
    scalars |= _joint.joint_distances(ours, theirs)
    scalars |= {"joint_parameters": float(ours.shape[1]), "joint_draws": float(n)}
    scalars |= _predictive.elpd_difference(side.tree, reference)
    scalars |= cost(side.tree)
    recorded = _losses(side.tree) if losses is None else losses
    fall = (np.nan, np.nan) if recorded is None else late_fall(recorded)
    scalars |= dict(zip(PROGRESS, fall, strict=True))
    spread = dict(zip(side.anchors.labels, governed_spread(theirs), strict=True))
    governed = np.array([spread.get(label, np.nan) for label in side.labels])
    columns = _stacked(side.columns) | {"governed_spread": governed}
    return _over_parameters(columns, side.labels).assign(scalars)


def cost(tree: xr.DataTree) -> dict[str, float]:
    """Seconds and gradient evaluations that draws took, NaN where the tree does not say.

    They are root attributes, ``seconds`` and ``gradient_evaluations``; of a Markov chain without
    the latter, the ``n_steps`` of all transitions after warm-up.
    """
    found = {name: float(tree.attrs.get(name, np.nan)) for name in COST}
    if np.isnan(found["gradient_evaluations"]) and "sample_stats" in tree.children:
        stats = tree["sample_stats"]
        if "n_steps" in stats.data_vars:
            found["gradient_evaluations"] = float(stats["n_steps"].sum())
    return found


def _losses(tree: xr.DataTree) -> np.ndarray | None:
    if "training" not in tree.children or "loss" not in tree["training"].data_vars:
        return None
    return np.asarray(tree["training/loss"])


def _thinned(draws: np.ndarray) -> np.ndarray:
    """Nearly independent draws ``(draw, parameter)``, evenly spaced among ``(P, chain, draw)``."""
    flat = _flat(draws)
    independent = min(mixing(draws).ess.min(), flat.shape[1], _joint.MAX_DRAWS)
    num_draws = max(int(independent), _draws.MIN_DRAWS_PER_CHAIN)
    return flat[:, np.linspace(0, flat.shape[1] - 1, num_draws).astype(int)].T


def _flat(draws: np.ndarray) -> np.ndarray:
    return draws.reshape(len(draws), -1)


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
