"""Every number of a comparison as one xarray Dataset, computed block by block."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pyro_elbo_lab import _draws
from pyro_elbo_lab._distances import distances, is_constant, noise_floors, weighted_moments
from pyro_elbo_lab._importance import ImportanceDiagnostics, diagnose

DIAGNOSTICS = (
    "k_hat",
    "k_hat_threshold",
    "elbo",
    "elbo_se",
    "log_evidence",
    "log_evidence_se",
    "weight_ess",
)

_BLOCK = 256
"""Scalar parameters worked on at once: bounds memory to a few hundred draws arrays."""

_WEIGHTED = (
    "mean_error_weighted",
    "mean_error_weighted_mcse",
    "sd_ratio_weighted",
    "sd_ratio_weighted_mcse",
)


def assemble(
    approximations: Mapping[str, xr.DataTree], reference: xr.DataTree
) -> tuple[xr.Dataset, dict[str, xr.Dataset], list[str]]:
    """Compute what a Comparison holds.

    Returns:
        All numbers over ``approximation`` and ``parameter``, NaN where an approximation lacks a
        parameter; the same by approximation, over its own parameters alone; and notes on what was
        left out.
    """
    target = _draws.posterior(reference, "reference")
    blocks, notes = _varying_blocks(target)
    rows = {}
    for name, tree in approximations.items():
        draws = _draws.posterior(tree, name)
        notes += _notes_on_missing(name, draws, target)
        rows[name] = _row(name, tree, draws, target, blocks)
    return _joined(rows, target, blocks), rows, notes


@dataclass(frozen=True)
class _Block:
    """Some scalar elements of one variable: flat indices and labels, equally many."""

    variable: str
    index: np.ndarray
    labels: list[str]


def _varying_blocks(target: xr.Dataset) -> tuple[list[_Block], list[str]]:
    """Split the parameters that vary in the reference into blocks, and note those that do not."""
    blocks, constant = [], []
    for variable, array in target.data_vars.items():
        labels = np.array(_draws.labels(array), dtype=object)
        _check_unique(labels)
        eps = np.finfo(array.dtype).eps if array.dtype.kind == "f" else 0.0
        for start in range(0, len(labels), _BLOCK):
            index = np.arange(start, min(start + _BLOCK, len(labels)))
            fixed = is_constant(_draws.elements(array, index), float(eps))
            constant += labels[index[fixed]].tolist()
            if not fixed.all():
                index = index[~fixed]
                blocks.append(_Block(str(variable), index, labels[index].tolist()))
    if not constant:
        return blocks, []
    return blocks, [f"not compared, constant in the reference: {_enumerated(constant)}"]


def _check_unique(labels: np.ndarray) -> None:
    names, counts = np.unique(labels.astype(str), return_counts=True)
    if counts.max(initial=0) > 1:
        raise ValueError(
            "the reference has several parameters of the same name, "
            f"{_enumerated(names[counts > 1].tolist())}: coordinate values must be unique"
        )


def _joined(rows: Mapping[str, xr.Dataset], target: xr.Dataset, blocks: list[_Block]) -> xr.Dataset:
    """Stack the rows of all approximations over the parameters that any of them has."""
    compared = [block for block in blocks if any(_has(row, block) for row in rows.values())]
    floors = [
        _over_parameters(noise_floors(_draws.elements(target[b.variable], b.index)), b)
        for b in compared
    ]
    joined = xr.concat(floors, "parameter").assign_coords(
        variable=("parameter", [b.variable for b in compared for _ in b.labels]),
        element=("parameter", np.concatenate([b.index for b in compared])),
    )
    stacked = xr.concat(
        [row.reindex(parameter=joined["parameter"]) for row in rows.values()], "approximation"
    )
    return stacked.assign_coords(approximation=list(rows)).merge(joined)


def _has(row: xr.Dataset, block: _Block) -> bool:
    return block.labels[0] in row.indexes["parameter"]


def _row(
    name: str, tree: xr.DataTree, draws: xr.Dataset, target: xr.Dataset, blocks: list[_Block]
) -> xr.Dataset:
    """Return the distances, over ``parameter``, and diagnostics of one approximation."""
    found = _diagnostics(name, tree, draws)
    parts = []
    for block in blocks:
        if block.variable not in draws:
            continue
        reference = target[block.variable]
        array = _draws.aligned(draws[block.variable], reference, name)
        z = _draws.elements(array, block.index)
        r = _draws.elements(reference, block.index)
        columns = distances(z, r)
        if found is None:
            columns |= dict.fromkeys(_WEIGHTED, np.full(len(z), np.nan))
        else:
            columns |= weighted_moments(z, r, found.weights)
        parts.append(_over_parameters(columns, block))
    if not parts:
        raise ValueError(
            f"{name!r} and the reference have no varying parameter in common: {name!r} has "
            f"{sorted(map(str, draws))}, the reference {sorted(map(str, target))}"
        )
    scalars = {key: getattr(found, key) if found else np.nan for key in DIAGNOSTICS}
    return xr.concat(parts, "parameter").assign(scalars)


def _diagnostics(name: str, tree: xr.DataTree, draws: xr.Dataset) -> ImportanceDiagnostics | None:
    log_weights = _draws.log_weights(tree, draws, name)
    is_point = all(np.ptp(array.values, axis=(0, 1)).max() == 0 for array in draws.values())
    if log_weights is None or is_point:  # a point mass has no density to weight
        return None
    try:
        return diagnose(log_weights)
    except ValueError as error:
        raise ValueError(f"sample_stats variable 'log_weight' of {name!r}: {error}") from error


def _over_parameters(columns: Mapping[str, np.ndarray], block: _Block) -> xr.Dataset:
    variables = {key: ("parameter", values) for key, values in columns.items()}
    return xr.Dataset(variables, coords={"parameter": block.labels})


def _notes_on_missing(name: str, draws: xr.Dataset, target: xr.Dataset) -> list[str]:
    sides = (("the reference", draws, target), (repr(name), target, draws))
    return [
        f"not compared, missing in {where}: {_enumerated(missing)} (comparing {name!r})"
        for where, one, other in sides
        if (missing := [str(variable) for variable in one if variable not in other])
    ]


def _enumerated(names: list[str], most: int = 10) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
