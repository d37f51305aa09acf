"""The branches of a guide: its sequentially enumerated sites have one value in each.

A site of a guide that is marked infer={"enumerate": "sequential"} takes its values one after the
other, in a run of the guide each, so that Python code may branch on it. The branches form a tree:
those that differ at a site only, or after it, share what was drawn before it. They are taken in the
order of `pyro.infer.TraceEnum_ELBO`, last values first.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pyro import poutine
from pyro.poutine.enum_messenger import enumerate_site
from pyro.poutine.messenger import Messenger
from torch import Tensor

Path = Mapping[str, int]


class Branch(Messenger):
    """A handler of a guide that gives its sequentially enumerated sites one value each.

    Args:
        path: the numbers of the values of the first of these sites, by name; further ones have
            their last value.
        shared: what was drawn before the sites at which another branch parted from this one.
        drawn: sites that are drawn though they are marked to be enumerated.
    """

    def __init__(
        self,
        path: Path | None = None,
        shared: Mapping[str, Tensor] | None = None,
        drawn: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.drawn = drawn
        self.path = dict(path or {})
        self.shared = dict(shared or {})
        self.taken: dict[str, int] = {}
        self.values: dict[str, Any] = {}

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        self.taken, self.values = {}, {}
        return super().__call__(fn)

    def unmarked(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        """The guide without the marks of the sites that are drawn."""
        if not self.drawn:
            return guide
        none = {"enumerate": None}
        return poutine.infer_config(guide, lambda msg: none if msg["name"] in self.drawn else {})

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if is_sequential(msg):
            try:
                values = enumerate_site(msg)
            except (NotImplementedError, AttributeError):
                return  # is drawn, and then refused with a message by `structure.analyze`
            self.taken[name] = self.path.get(name, len(values) - 1)
            msg["value"], msg["done"] = values[self.taken[name]], True
            msg["infer"]["_enum_total"] = len(values)
        elif name in self.shared and not msg["is_observed"]:
            msg["value"], msg["done"] = self.shared[name], True

    def _pyro_post_sample(self, msg: Any) -> None:
        self.values[msg["name"]] = msg["value"]

    def next(self) -> "Branch | None":
        """The branch after this one, None if it was the last. This one must have been run."""
        path = dict(self.taken)
        while path:
            name, index = path.popitem()
            if index > 0:
                names = list(self.values)
                before = names[: names.index(name)]
                shared = {n: self.values[n] for n in before}
                return Branch({**path, name: index - 1}, shared, self.drawn)
        return None


def num_values(site: Any) -> int:
    """How many values a sequentially enumerated site has, after it was run in a `Branch`."""
    return site["infer"]["_enum_total"]


def is_sequential(site: Any) -> bool:
    """Whether a site is marked to take its values one after the other."""
    marked = (site["infer"] or {}).get("enumerate") == "sequential"
    return site["type"] == "sample" and not site["is_observed"] and marked
