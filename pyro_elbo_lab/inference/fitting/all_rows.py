"""The posterior of a fit on minibatches, scored on the rows of all batches or not at all."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from xarray import DataTree

from pyro_elbo_lab.inference.fitting.batches import as_arguments
from pyro_elbo_lab.inference.trees.convert import from_guide, unscored
from pyro_elbo_lab.programs.messages import first_line, warn

__all__ = ["from_batches"]

Program = Callable[..., Any]

MOST_VALUES = 100_000_000
"""Rows of an argument times draws that are scored at once: 400 MB in float32."""


def from_batches(
    guide: Program,
    model: Program,
    batches: Iterable[Any],
    first: tuple,
    kwargs: Mapping[str, Any],
    num_samples: int,
) -> DataTree:
    """Draws of a guide that was fitted on batches, scored on the rows of all of them.

    One pass of the batches is put together and handed to model and guide as one. Where that cannot
    be done, the draws have no log-weights, as those of one batch would say nothing of all data:
    a warning and the attribute `notes` say why.

    Args:
        guide: the guide.
        model: the model.
        batches: what `fit` was given.
        first: positional arguments of the first step, which shows what sites there are.
        kwargs: keyword arguments of both.
        num_samples: the number of draws.

    Returns:
        As `from_guide`.

    Warns:
        UserWarning: the draws have no log-weights.
    """
    draw: dict[str, Any] = {"num_samples": num_samples, **kwargs}
    args, reason = _joined(batches, num_samples)
    if not reason:
        try:
            return from_guide(guide, model, *args, **draw)
        except Exception as error:  # the user's program, on more rows than it has seen before
            reason = f"model and guide do not run on all rows at once ({first_line(error)})"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the one below says more
        tree = from_guide(guide, model, *first, **draw)
    why = (
        "draws of a fit on batches are not scored on all data, and have no log-weights and no "
        f"k-hat: {reason}. Pass all rows, posterior(data=...) or from_guide(guide, model, ...); "
        "latents of single rows are those of the first batch"
    )
    warn(f"The {why}.")
    return unscored(tree, why)


def _joined(batches: Iterable[Any], num_samples: int) -> tuple[tuple, str]:
    """The rows of one pass as positional arguments, or why there are none."""
    if isinstance(batches, Iterator) or not isinstance(batches, Sized):
        return (), "how many batches are one pass is not known (they have no len())"
    if isinstance(batches, DataLoader) and not _has_every_row_once(batches):
        return (), "the DataLoader draws rows at random with replacement, or drops the last ones"
    rows = [as_arguments(batch) for batch in batches]
    if len({len(row) for row in rows}) != 1:
        return (), "the batches have different numbers of arguments"
    columns = list(zip(*rows, strict=True))
    varying = [c for c in columns if isinstance(c[0], Tensor) and any(x is not c[0] for x in c)]
    if any(len({len(x) for x in batch}) > 1 for batch in zip(*varying, strict=True)):
        return (), "the arguments of a batch have different numbers of rows"
    try:
        args = tuple(map(_column, columns))
    except (ValueError, RuntimeError) as error:
        return (), f"the batches cannot be put together ({first_line(error)})"
    largest = max((x.numel() for x in args if isinstance(x, Tensor)), default=0)
    if largest * num_samples > MOST_VALUES:
        fewer = max(1, MOST_VALUES // largest)
        return (), (
            f"{num_samples} draws for an argument of {largest} numbers are more than is scored at "
            f"once; num_samples={fewer} is not"
        )
    return args, ""


def _column(values: tuple) -> Any:
    """One argument of all batches: rows one below the other, or what is the same in each."""
    first = values[0]
    if all(value is first for value in values):
        return first
    if all(isinstance(value, Tensor) and value.dim() for value in values):
        return torch.cat(values)
    if any(isinstance(value, Tensor) for value in values) or any(v != first for v in values):
        raise ValueError(f"an argument that is a {type(first).__name__} differs between batches")
    return first


def _has_every_row_once(loader: DataLoader) -> bool:
    chosen = loader.batch_sampler
    if chosen is not None and type(chosen) is not BatchSampler:
        return False
    sampler = loader.sampler if chosen is None else chosen.sampler
    if isinstance(sampler, RandomSampler):
        if sampler.replacement or sampler.num_samples != len(sampler.data_source):
            return False
    elif not isinstance(sampler, SequentialSampler):
        return False
    return chosen is None or not chosen.drop_last or len(sampler) % chosen.batch_size == 0
