"""Runs that repeat what an earlier run has drawn, and runs of which nothing is left."""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_elbo_lab.programs.enumeration import (
    Site,
)
from pyro_elbo_lab.programs.rows import names_rows
from pyro_elbo_lab.programs.state import random_states_kept
from pyro_elbo_lab.programs.structure.factors import is_subsample

Values = dict[str, Tensor]


class Untraced(Messenger):
    """Notes draws that Pyro puts into no trace."""

    def __init__(self) -> None:
        super().__init__()
        self.values: Values = {}

    def _pyro_post_sample(self, msg: Site) -> None:
        if (msg["infer"] or {}).get("_do_not_trace") and not msg["is_observed"]:
            self.values[msg["name"]] = msg["value"]


class Recall(Messenger):
    """Gives sites the values of an earlier run. Unlike `poutine.replay` it leaves a site's `infer`
    alone, where a GuideMessenger keeps the prior of this run."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Site) -> None:
        if msg["is_observed"] or msg["done"]:  # such as by replay, whose value knows its origin
            return
        value = self.values.get(_recalled_as(msg))
        if value is None and is_subsample(msg):  # the guide's plate has fewer or more rows
            value = self.values.get(_named_as(msg))
        if value is not None:
            msg["done"] = True
            msg["value"] = value


def to_recall(model_trace: Any, guide_trace: Any, latents: Collection[str]) -> Values:
    """The subsamples of all plates, and the draws of the named latents."""
    sites = [*model_trace.nodes.items(), *guide_trace.nodes.items()]
    plates = [site for _, site in sites if is_subsample(site)]
    values = {_named_as(site): site["value"] for site in plates if names_rows(site)}
    values |= {_recalled_as(site, len(site["value"])): site["value"] for site in plates}
    drawn = guide_trace.nodes
    return values | {name: drawn[name]["value"] for name in latents if name in drawn}


def _named_as(site: Site) -> str:
    return f"{site['name']} named of {site['fn'].size}"


def _recalled_as(site: Site, rows: int | None = None) -> str:
    """A plate of another size is another plate, whose subsample has to be drawn."""
    if not is_subsample(site):
        return site["name"]
    return f"{site['name']} {rows or site['fn'].subsample_size} of {site['fn'].size}"


@contextmanager
def aside(within: AbstractContextManager[Any] | None = None) -> Iterator[None]:
    """Run programs without a trace of it: random state and enclosing handlers do not notice.

    Args:
        within: a handler that the programs run under, in place of those around.
    """
    with random_states_kept(), poutine.block(), within or nullcontext():
        yield
