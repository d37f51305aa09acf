"""The scalar parameters of a reference, in blocks small enough to work on at once."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pyro_elbo_lab.statistics.distances import is_constant
from pyro_elbo_lab.statistics.tolerances import MIN_DRAWS_PER_CHAIN
from pyro_elbo_lab.trust.comparison import posteriors

SIZE = 1024
"""Most scalar parameters in a block: with chains of 4 x 1000 draws, 33 MB."""


@dataclass(frozen=True)
class Block:
    """Some scalar elements of one variable: flat indices and labels, equally many."""

    variable: str
    index: np.ndarray
    labels: list[str]


def varying_blocks(target: xr.Dataset) -> tuple[list[Block], list[str]]:
    """Split the parameters that vary in the reference into blocks, and note those that do not.

    Raises:
        ValueError: if two parameters have the same label.
    """
    blocks, constant = [], []
    for variable, array in target.data_vars.items():
        labels = np.array(posteriors.labels(array), dtype=object)
        _check_unique(labels)
        for start in range(0, len(labels), SIZE):
            index = np.arange(start, min(start + SIZE, len(labels)))
            fixed = _constant(array, index, precision(array))
            constant += labels[index[fixed]].tolist()
            if not fixed.all():
                index = index[~fixed]
                blocks.append(Block(str(variable), index, labels[index].tolist()))
    if not constant:
        return blocks, []
    return blocks, [f"not compared, constant in the reference: {enumerated(constant)}"]


def any_varies(draws: xr.Dataset) -> bool:
    """Whether any scalar parameter has two draws that differ by more than rounding."""
    return not all(
        is_constant(
            posteriors.elements(array, np.arange(start, min(start + SIZE, size))), precision(array)
        ).all()
        for array in draws.data_vars.values()
        for size in [int(np.prod(array.shape[2:]))]
        for start in range(0, size, SIZE)
    )


def precision(array: xr.DataArray) -> float:
    """Relative rounding error of the numbers in an array, 0 for integers."""
    return float(np.finfo(array.dtype).eps) if array.dtype.kind == "f" else 0.0


def evenly_spaced(blocks: list[Block], most: int) -> list[Block]:
    """At most `most` of the parameters of `blocks`, at equal distances."""
    total = sum(len(block.labels) for block in blocks)
    chosen = np.unique(np.linspace(0, total - 1, min(most, total)).astype(int))
    found, start = [], 0
    for block in blocks:
        places = chosen[(start <= chosen) & (chosen < start + len(block.labels))] - start
        if places.size:
            labels = [block.labels[i] for i in places]
            found.append(Block(block.variable, block.index[places], labels))
        start += len(block.labels)
    return found


def enumerated(names: list[str], most: int = 10) -> str:
    """The names in one line, of many of them the first ten."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def labels_of(blocks: Iterable[Block]) -> list[str]:
    return [label for block in blocks for label in block.labels]


def _constant(array: xr.DataArray, index: np.ndarray, eps: float) -> np.ndarray:
    """Which of some elements never vary; a few draws show of most that they do."""
    first = array.isel(draw=slice(0, MIN_DRAWS_PER_CHAIN))
    fixed = is_constant(posteriors.elements(first, index), eps)
    fixed[fixed] = is_constant(posteriors.elements(array, index[fixed]), eps)
    return fixed


def _check_unique(labels: np.ndarray) -> None:
    names, counts = np.unique(labels.astype(str), return_counts=True)
    if counts.max(initial=0) > 1:
        raise ValueError(
            "the reference has several parameters of the same name, "
            f"{enumerated(names[counts > 1].tolist())}: coordinate values must be unique"
        )
