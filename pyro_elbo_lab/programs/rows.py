"""Rows of a plate that a model names itself: `pyro.plate("data", N, subsample=indices)`.

A guide whose plate of that name draws rows of its own, as an autoguide's does, would have them
override the model's indices, whose data then belong to other rows. Here the guide takes the rows
that the model names: what ran without them is thrown away and run again.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous, AutoGaussian, AutoStructured
from pyro.infer.autoguide.guides import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_elbo_lab.programs.pair import Pair, Program, traced

__all__ = ["in_named_order", "names_rows", "replayed", "sites_by_position"]

_BY_PLACE = (AutoContinuous, AutoStructured, AutoGaussian)

Rows = dict[str, Tensor]


def replayed(pair: Pair, while_guiding: AbstractContextManager[Any]) -> tuple[Any, Any]:
    """Run the guide, then the model on the guide's draws and on the rows that the model names.

    Args:
        pair: model and guide with their arguments.
        while_guiding: a handler that sees the guide's sites but not the model's; it may be entered
            more than once.

    Returns:
        The traces (model, guide), each with its subsample sites.

    Raises:
        ValueError: the guide cannot take the rows that the model names.
    """
    rows: Rows = {}
    while True:
        try:
            with while_guiding, in_named_order(), _Give(rows) as giving, _plates(pair.guide, rows):
                guide_trace = traced(pair.guide, pair)
            watched = _Watch(giving.drawn)(in_named_order()(pair.model))
            return traced(poutine.replay(watched, trace=guide_trace), pair), guide_trace
        except _NamedError as named:
            _refuse_positions(pair.guide, named.plate, named.rows)
            rows[named.plate] = named.rows


class _NamedError(Exception):
    """The model names rows where the guide has drawn others."""

    def __init__(self, plate: str, rows: Tensor) -> None:
        super().__init__(plate)
        self.plate = plate
        self.rows = rows


class _Give(Messenger):
    """Gives the guide's plates rows; the plates that draw their own are noted in `drawn`."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows
        self.drawn: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) or msg["value"] is not None:
            return
        name = msg["name"]
        if name not in self.rows:
            self.drawn.add(name)
            return
        found, expected = msg["fn"].subsample_size, len(self.rows[name])
        if found is not None and found != expected:
            raise ValueError(
                f"Plate '{name}': the model names {expected} rows (subsample=), but the guide's "
                f"plate has {found}. Give the guide's plate the same indices: "
                f"pyro.plate('{name}', ..., subsample=indices) in a guide of your own, or "
                "create_plates= of an autoguide, a function of the model's arguments that returns "
                "this plate."
            )
        msg["value"] = self.rows[name]
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        """Rows that another particle was given may be more or fewer than the guide's plate has."""
        if msg["name"] in self.drawn and site_is_subsample(msg):
            expected = msg["fn"].subsample_size
            if expected is not None and expected != len(msg["value"]):
                raise _NamedError(msg["name"], msg["value"])


def names_rows(site: Any) -> bool:
    """Whether the model has named the rows of a plate, in a trace from `replayed`."""
    return bool((site["infer"] or {}).get(_NAMED))


_NAMED = "_rows_named"


class _Watch(Messenger):
    def __init__(self, drawn: set[str]) -> None:
        super().__init__()
        self.drawn = drawn
        self.named: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) or msg["value"] is None:
            return
        if msg["name"] in self.drawn:
            raise _NamedError(msg["name"], msg["value"])
        self.named.add(msg["name"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.named:  # not before: replay hands over the guide's infer
            msg["infer"][_NAMED] = True


class in_named_order(Messenger):  # noqa: N801
    """Parameters and data of all rows follow an order that is named.

    Pyro selects the rows of `pyro.param` and `pyro.subsample` in a plate where it holds some of
    the rows, but not where it holds all of them in another order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: Rows = {}

    def _pyro_sample(self, msg: Any) -> None:
        rows = msg["value"] if site_is_subsample(msg) else None
        if isinstance(rows, Tensor) and len(rows) == msg["fn"].size:
            self.rows[msg["name"]] = rows

    def _pyro_post_param(self, msg: Any) -> None:
        event_dim = msg["kwargs"].get("event_dim")
        if event_dim is None:
            return
        for frame in msg["cond_indep_stack"]:
            rows = self.rows.get(frame.name)
            if rows is None or not frame.vectorized:
                continue
            dim = frame.dim - event_dim
            if msg["value"].dim() >= -dim and msg["value"].shape[dim] == len(rows):
                msg["value"] = msg["value"].index_select(dim, rows)

    _pyro_post_subsample = _pyro_post_param


@contextmanager
def _plates(guide: Program, rows: Rows) -> Iterator[None]:
    """While inside, an autoguide's plates have as many rows as the model names, which may be
    fewer in the last batch."""
    unwrapped = poutine.unwrap(guide)
    if not rows or not isinstance(unwrapped, AutoGuide) or unwrapped.prototype_trace is None:
        yield
        return
    theirs = unwrapped.create_plates
    frames = _frames(unwrapped)

    def plates(*args: Any, **kwargs: Any) -> list[Any]:
        found = theirs(*args, **kwargs) if theirs else []
        found = [found] if isinstance(found, pyro.plate) else list(found)
        named = [name for name in rows if name in frames and name not in {p.name for p in found}]
        return found + [
            pyro.plate(n, frames[n].full_size or frames[n].size, None, rows[n], frames[n].dim)
            for n in named
        ]

    unwrapped.create_plates = plates
    try:
        yield
    finally:
        unwrapped.create_plates = theirs


def _frames(guide: Any) -> dict[str, Any]:
    """The vectorized plates that hold latents of an autoguide, by name."""
    return dict(guide._prototype_frames)  # AutoStructured empties its prototype_trace


def sites_by_position(guide: Program) -> dict[str, str]:
    """The subsampled plates of which an autoguide has one parameter for each place in a batch, not
    for each row: by name, with the name of the guide's class."""
    found = {}
    for part in _parts(guide):
        for frame in _frames(part).values():
            if frame.full_size not in (None, frame.size):
                found[frame.name] = type(part).__name__
    return found


def _parts(guide: Program) -> list[Any]:
    unwrapped = poutine.unwrap(guide)
    modules = unwrapped.modules() if isinstance(unwrapped, torch.nn.Module) else ()
    return [m for m in modules if isinstance(m, _BY_PLACE) and m.prototype_trace is not None]


def _refuse_positions(guide: Program, plate: str, rows: Tensor) -> None:
    for part in _parts(guide):
        frame = _frames(part).get(plate)
        if frame is None:
            continue
        size = frame.full_size or frame.size
        if len(rows) == size and torch.equal(rows, torch.arange(size, device=rows.device)):
            continue
        raise ValueError(
            f"The model names {len(rows)} of {size} rows of plate '{plate}' (subsample=), but "
            f"{type(part).__name__} has one parameter for each place in a batch and not for each "
            f"row. For the latents of plate '{plate}' use AutoNormal, AutoDelta or a guide of your "
            "own with a plate of this name, beside the other guide in an AutoGuideList; or pass "
            "all rows in their order."
        )
