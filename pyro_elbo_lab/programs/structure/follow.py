"""What depends on what: the names of latents follow their values through a run."""

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from torch.overrides import TorchFunctionMode

from pyro_elbo_lab.programs.enumeration import (
    Site,
)
from pyro_elbo_lab.programs.pair import Program
from pyro_elbo_lab.programs.structure.factors import (
    FactorKey,
    factors,
    is_random,
    is_subsample,
    summands,
)
from pyro_elbo_lab.programs.structure.marks import Averaged
from pyro_elbo_lab.programs.structure.recall import Recall, Values, aside
from pyro_elbo_lab.programs.structure.runs import Again

Reads = Mapping[FactorKey, frozenset[str]]


Dependencies = tuple[Reads, Reads, frozenset[str]]


def follow(
    model: Program,
    again: Again,
    enumerated: tuple[str, ...],
    averaged: Mapping[str, Averaged],
    recall: Values,
) -> Dependencies:
    """For every factor the latents that it reads, the same for its parameters alone, and the
    latents that left the tensor world. Enumerated sites, drawn or not, count as read too."""
    if enumerated:
        model = _CarryEnumerated(enumerated)(model)
    for grad in (False, True):  # most programs need none, some differentiate something themselves
        carry = _CarryNames(averaged)
        with (
            aside(Recall(recall)),
            torch.set_grad_enabled(grad),
            pyro.validation_enabled(False),
            _Escapes() as escapes,
        ):
            try:
                found = factors(*again(model, carry))
                carried = {
                    k: s for key, site in found.items() for k, s in summands(key, site).items()
                }
                direct = {key: _provenance(site, site["value"]) for key, site in carried.items()}
                params = {key: _provenance(site, _plain(site)) for key, site in carried.items()}
            except RuntimeError:
                if grad:
                    raise
            else:
                break
    return direct, params, escapes.names


def _plain(site: Site) -> Any:
    return detach_provenance(site["value"])


def _provenance(site: Site, value: Any) -> frozenset[str]:
    try:
        return get_provenance(site["fn"].log_prob(value, *site["args"], **site["kwargs"]))
    except (KeyError, NotImplementedError):  # a flow that knows only its own last draw
        return get_provenance(site["value"]) - {site["name"]}


class _CarryNames(Messenger):
    """Lets the value of each random draw carry its own name and those of its upstream draws, that
    of an enumerated site a tag in the place of its name and of those of enumerated ones."""

    def __init__(self, averaged: Mapping[str, Averaged]) -> None:
        super().__init__()
        self.averaged = averaged

    def _pyro_post_sample(self, msg: Site) -> None:
        if not is_subsample(msg) and is_random(msg):
            value, name = _plain(msg), msg["name"]
            upstream = get_provenance(msg["value"]) | _provenance(msg, value)
            if name in self.averaged:
                upstream, name = _untagged(upstream), tag_of(name)
            msg["value"] = track_provenance(value, upstream | {name})


_TAG = "summed out: "


def tag_of(name: str) -> str:
    return _TAG + name


def _untagged(names: frozenset[str]) -> frozenset[str]:
    return frozenset(name for name in names if not name.startswith(_TAG))


class _CarryEnumerated(Messenger):
    """Lets the values of enumerated sites carry their own name, but not those of the enumerated
    sites before them: each has a dimension of its own."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names

    def _pyro_post_sample(self, msg: Site) -> None:
        if msg["name"] in self.names:
            carried = _untagged(get_provenance(msg["value"])) | {tag_of(msg["name"])}
            msg["value"] = track_provenance(_plain(msg), carried)


class _Escapes(TorchFunctionMode):
    """Notes latents that leave the tensor world (`.item()`, `bool`, `numpy`): anything may
    depend on them from there on."""

    _EXITS = frozenset(
        {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: frozenset[str] = frozenset()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._EXITS:
            self.names |= get_provenance(list(args))
        return func(*args, **(kwargs or {}))
