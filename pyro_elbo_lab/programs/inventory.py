"""Where a program keeps what it learns: its parameters, and the buffers of its modules.

Parameters are found by a run of the program, in the param store or in modules. A buffer is state
too, such as the running statistics of a batch normalization: those of the program's own modules
are found, of all modules that it calls, and of transforms in its distributions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_elbo_lab.programs.state import module_of, store_state, unconstrained

__all__ = ["Buffer", "Inventory", "holding", "inventory"]

Run = Callable[[], Any]


@dataclass(frozen=True)
class Buffer:
    """A buffer of a module.

    Attributes:
        module: the module.
        name: of the buffer in this module alone.
        tensor: where its values are.
        value: a copy of the values before the program ran.
    """

    module: nn.Module
    name: str
    tensor: Tensor
    value: Tensor

    def give_back(self) -> None:
        """Undo what has happened to it, in the memory where it was."""
        self.tensor.data.copy_(self.value)
        self.put_back()

    def put_back(self) -> None:
        """Let the module have this tensor, should it have another one by now."""
        if getattr(self.module, self.name, None) is not self.tensor:
            setattr(self.module, self.name, self.tensor)


@dataclass
class Inventory:
    """What a program has.

    Attributes:
        leaves: the unconstrained parameters by name, each the tensor that the program reads.
        constraints: of those that are in the param store.
        buffers: by a name that is the same in every process.
        strangers: parameters of modules that go by the name of another tensor in the param store,
            which would be trained in their place.
    """

    leaves: dict[str, Tensor] = field(default_factory=dict)
    constraints: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    strangers: dict[str, Tensor] = field(default_factory=dict)


def inventory(run: Run, **programs: Any) -> Inventory:
    """Run a program once, and say what it has. Buffers are as before afterwards.

    Args:
        run: runs everything that belongs to the program.
        programs: its parts by name, such as `guide=guide`, which may be modules.

    Example:
        >>> import pyro, torch
        >>> def guide():
        ...     loc = pyro.param("loc", torch.tensor(1.0))
        ...     pyro.sample("z", pyro.distributions.Normal(loc, 1.0))
        >>> inventory(guide, guide=guide).leaves
        {'loc': tensor(1., requires_grad=True)}
    """
    found = Inventory()
    with poutine.block(), _Buffers(found.buffers, programs), _Parameters(found):
        run()
    _, constraints = store_state()
    found.constraints |= {name: constraints[name] for name in found.leaves if name in constraints}
    return found


class _Parameters(Messenger):
    def __init__(self, found: Inventory) -> None:
        super().__init__()
        self.found = found

    def _pyro_post_param(self, message: Any) -> None:
        name, value = message["name"], message["value"]
        leaf = unconstrained(value)
        given = message["args"][1] if len(message["args"]) > 1 else None
        if isinstance(given, nn.Parameter) and given is not leaf and given.is_contiguous():
            self.found.strangers[name] = given
        self.found.leaves[name] = leaf


class _Buffers(Messenger):
    """Notes the buffers of every module before its first call, and gives them back at the end."""

    def __init__(self, found: dict[str, Buffer], programs: dict[str, Any]) -> None:
        super().__init__()
        self.found = found
        self.seen: set[nn.Module] = set()
        for name, program in programs.items():
            self._note(module_of(program), name)

    def __enter__(self) -> Any:
        self.handle = register_module_forward_pre_hook(lambda module, _: self._note(module))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.handle.remove()
        for buffer in self.found.values():
            buffer.give_back()
        super().__exit__(*error)

    def _pyro_sample(self, message: Any) -> None:
        for module in _transforms(message["fn"]):
            self._note(module)

    def _note(self, root: nn.Module | None, label: str = "") -> None:
        if root is None or root in self.seen:
            return
        label = label or f"{type(root).__name__} {len(self.seen)}"
        for path, module in root.named_modules():
            if module in self.seen:
                continue
            self.seen.add(module)
            for name, tensor in module.named_buffers(recurse=False):
                full = ".".join(filter(None, (label, path, name)))
                self.found[full] = Buffer(module, name, tensor, tensor.detach().clone())


def _transforms(fn: Any) -> Iterator[nn.Module]:
    """The modules among the transforms of a distribution."""
    while fn is not None:
        stack = list(getattr(fn, "transforms", ()))
        while stack:
            transform = stack.pop(0)
            if isinstance(transform, nn.Module):
                yield transform
            stack = [*getattr(transform, "parts", ()), *stack]
        fn = getattr(fn, "base_dist", None)


@contextmanager
def holding(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside the block each first tensor has the values of the second; no gradient notices.

    Args:
        pairs: where, and a copy of what.
    """
    before = [where.data for where, _ in pairs]
    try:
        for where, value in pairs:
            where.data = value.to(where.device, copy=True)
        yield
    finally:
        for (where, _), data in zip(pairs, before, strict=True):
            where.data = data
