"""What model and guide have learnt, as values that nothing outside changes.

Parameters live in the param store, which all programs of a process share by name, and in modules,
which go on learning. A `Learnt` is a copy. It can be put in their place for a while, which leaves
no trace, or for good.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_elbo_lab.programs.inventory import Inventory, holding
from pyro_elbo_lab.programs.state import set_store, store_holding, store_state
from pyro_elbo_lab.programs.training import Programs

__all__ = ["Learnt"]


@dataclass(frozen=True)
class Learnt:
    """Copies of everything that a model and guide have learnt.

    Attributes:
        parameters: unconstrained, by name.
        buffers: of their modules, by name.
        constraints: of the parameters that no module holds, by name.
        leaves: where the parameters were, by name; some have two.
    """

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    constraints: Mapping[str, Any] = field(default_factory=dict, repr=False)
    leaves: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "leaves": {}}  # another process has others

    @staticmethod
    def of(programs: Programs, others: Mapping[str, Tensor]) -> "Learnt":
        """Copies of what programs have learnt.

        Args:
            programs: model and guide.
            others: further unconstrained parameters by name, which not every run reads.
        """
        found = programs.inventory()
        leaves = {**others, **found.leaves}
        names = {id(leaf): name for name, leaf in leaves.items()}
        return Learnt(
            parameters={name: _copy(leaves[name]) for name in names.values()},
            buffers={name: buffer.value for name, buffer in found.buffers.items()},
            constraints=_free({n: leaves[n] for n in names.values()}, store_state()[1]),
            leaves=leaves,
        )

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "Learnt":
        """The same with other values of some parameters."""
        return replace(self, parameters={**self.parameters, **parameters})

    @contextmanager
    def in_place(self, programs: Programs) -> Iterator[None]:
        """Inside the block the programs have these values; afterwards they are as before.

        Args:
            programs: that have learnt them.

        Raises:
            ValueError: a module has a parameter that it did not have then.
        """
        with store_holding(self._own(), self.constraints):
            found = programs.inventory()
            new = self._unknown(found)
            new = [name for name in new if isinstance(found.leaves[name], nn.Parameter)]
            if new:
                raise ValueError(
                    f"Model and guide have {_listed(new)}, which they did not have when they were "
                    f"fitted; the fit has {_listed(self.parameters)}. Fit them again."
                )
            places = self._places(found)
            pairs = [(places[n], x) for n, x in self.parameters.items() if n in places]
            buffers = {n: b for n, b in found.buffers.items() if n in self.buffers}
            pairs += [(buffer.tensor, self.buffers[name]) for name, buffer in buffers.items()]
            try:
                with holding(pairs):
                    yield
            finally:
                for buffer in buffers.values():
                    buffer.put_back()

    def written(self, programs: Programs) -> "Learnt":
        """Give the programs these values for good, in their modules and in the param store.

        Args:
            programs: that have learnt them, or others of their kind.

        Returns:
            The same values, as those of these programs.

        Raises:
            ValueError: a parameter or buffer that one of both sides lacks, or that has another
                shape or type, or is NaN. Nothing has been written then.
        """
        before, before_constraints = store_state()
        free = _free({n: x for n, x in before.items() if self._could_be(n, x)}, before_constraints)
        start = {**self._own(), **{name: before[name] for name in free}}
        with store_holding(start, {**self.constraints, **free}):
            found = self._inventory(programs)
            after, constraints = store_state()
        places = self._places(found)
        self._check(found, places)
        with torch.no_grad():
            for name, value in self.parameters.items():
                places[name].copy_(value)
            for name, value in self.buffers.items():
                found.buffers[name].tensor.copy_(value)
        now = {name: places[name] for name in after if name in places}
        set_store(
            {**before, **now}, {**before_constraints, **{name: constraints[name] for name in now}}
        )
        unread = {name: x.value for name, x in found.buffers.items() if name not in self.buffers}
        free = _free({name: places[name] for name in self.parameters}, constraints)
        return Learnt(self.parameters, {**self.buffers, **unread}, free, places)

    def _own(self) -> dict[str, Tensor]:
        """Copies of the parameters that no module holds, as the param store has them."""
        return {name: _copy(self.parameters[name]).requires_grad_() for name in self.constraints}

    def _inventory(self, programs: Programs) -> Inventory:
        try:
            return programs.inventory()
        except KeyError as error:
            name = error.args[0] if error.args else None
            if name not in self.parameters:
                raise
            raise ValueError(
                f"Parameter '{name}' is read by pyro.param without an initial value, and the param "
                "store does not have it: create it first, as before the fit."
            ) from error

    def _could_be(self, name: str, leaf: Tensor) -> bool:
        """Whether an entry of the param store may be the parameter of this name."""
        own = self.parameters.get(name)
        return own is None or (own.shape == leaf.shape and own.dtype == leaf.dtype)

    def _places(self, found: Inventory) -> dict[str, Tensor]:
        return {**self.leaves, **found.leaves, **found.strangers}

    def _unknown(self, found: Inventory) -> list[str]:
        """Names of parameters of which this has no value, under no name."""
        known = {id(found.leaves[name]) for name in self.parameters if name in found.leaves}
        return [name for name, leaf in found.leaves.items() if id(leaf) not in known]

    def _check(self, found: Inventory, places: Mapping[str, Tensor]) -> None:
        missing = [name for name in self.parameters if name not in places]
        unknown = self._unknown(found)
        if missing or unknown:
            raise ValueError(
                f"The fit has the parameters {_listed(self.parameters)}, but model and guide have "
                f"{_listed(found.leaves)}: pass the model, and a guide of the kind, that were "
                "fitted."
            )
        for name, value in self.parameters.items():
            _check_alike("Parameter", name, value, places[name])
        for name, value in self.buffers.items():
            if name not in found.buffers:
                raise ValueError(
                    f"The fit has the buffer '{name}', but the modules of model and guide have "
                    f"{_listed(found.buffers)}: pass those that were fitted."
                )
            _check_alike("Buffer", name, value, found.buffers[name].tensor)


def _free(leaves: Mapping[str, Tensor], constraints: Mapping[str, Any]) -> dict[str, Any]:
    """Constraints of those parameters that no module holds, but the param store alone."""
    free = [name for name, leaf in leaves.items() if not isinstance(leaf, nn.Parameter)]
    return {name: constraints[name] for name in free if name in constraints}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _check_alike(kind: str, name: str, value: Tensor, place: Tensor) -> None:
    if value.shape != place.shape:
        raise ValueError(
            f"{kind} '{name}' has the shape {tuple(value.shape)} in the fit, but "
            f"{tuple(place.shape)} in model and guide (unconstrained): pass arguments of the same "
            "sizes as those of the fit."
        )
    if value.dtype != place.dtype:
        raise ValueError(
            f"{kind} '{name}' is {value.dtype} in the fit, but {place.dtype} in model and guide: "
            "pass arguments of the same types as those of the fit."
        )
    if value.is_floating_point() and value.isnan().any():
        raise ValueError(
            f"{kind} '{name}' of the fit has {int(value.isnan().sum())} NaN among its "
            f"{value.numel()} elements; expected numbers. Fit again."
        )


def _listed(names: Iterable[str]) -> str:
    """At most eight names."""
    names = [f"'{name}'" for name in names]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{', '.join(names[:8]) or 'none'}{more}"
