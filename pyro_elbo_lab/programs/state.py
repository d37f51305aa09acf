"""What Pyro, PyTorch, numpy and Python keep for the whole process: random states, parameters."""

import functools
import inspect
import random
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.nn import PyroModule
from pyro.params.param_store import normalize_param_name
from torch import Tensor, nn

__all__ = [
    "foreign_random_states",
    "forget",
    "forget_namesakes",
    "gradients_on",
    "local_parameters_marked",
    "module_of",
    "named_parameters",
    "random_states_kept",
    "seeded",
    "set_store",
    "store_holding",
    "store_state",
    "unconstrained",
]


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore the random states of torch, numpy and Python after the block."""
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def foreign_random_states() -> dict[str, Any]:
    """The random states of what is not PyTorch, by name, to tell whether something drew from it."""
    _, keys, *rest = np.random.get_state()
    return {"Python's random": random.getstate(), "numpy.random": (keys.tobytes(), *rest)}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, numpy and Python's random inside the block, and restore their states after it.

    Example:
        >>> with seeded(1):
        ...     first = torch.rand(())
        >>> with seeded(1):
        ...     assert torch.rand(()) == first
    """
    with random_states_kept():
        pyro.set_rng_seed(seed)
        yield


@contextmanager
def gradients_on() -> Iterator[None]:
    """Inside the block operations are recorded for gradients, whatever is around it.

    Example:
        >>> with torch.no_grad(), gradients_on():
        ...     print(torch.is_grad_enabled())
        True
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def store_holding(params: Mapping[str, Tensor], constraints: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block the param store has these entries alone; afterwards it is as it was.

    Args:
        params: unconstrained values by name, which are not copied.
        constraints: by the same names.

    Example:
        >>> _ = pyro.param("mine", torch.zeros(()))
        >>> with store_holding({}, {}):
        ...     list(pyro.get_param_store())
        []
        >>> list(pyro.get_param_store())
        ['mine']
    """
    before = store_state()
    try:
        set_store(params, constraints)
        yield
    finally:
        set_store(*before)


def store_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The unconstrained parameters in the param store, and their constraints, by name."""
    store = pyro.get_param_store()
    marked = [leaf for _, leaf in store.named_parameters() if hasattr(leaf, "unconstrained")]
    state = store.get_state()
    _mark(marked)  # Pyro has taken the marks away, to pickle
    return state["params"], state["constraints"]


def set_store(params: Mapping[str, Tensor], constraints: Mapping[str, Any]) -> None:
    """Replace everything in the param store; tensors are not copied."""
    store = pyro.get_param_store()
    store.clear()
    store.set_state({"params": dict(params), "constraints": dict(constraints)})


def forget(names: Iterable[str]) -> None:
    """Drop entries of the param store, also where two of them are one tensor, which Pyro's own
    way of dropping them does not expect."""
    names = set(names)
    if names:
        state = store_state()
        set_store(*({n: x for n, x in part.items() if n not in names} for part in state))


def _mark(leaves: Any) -> None:
    """Tell Pyro that real parameters are their own unconstrained values."""
    for leaf in leaves:
        leaf.unconstrained = weakref.ref(leaf)


def unconstrained(value: Any) -> Tensor:
    """The unconstrained tensor of a parameter site's value; a module's own parameter is one."""
    return value.unconstrained() if hasattr(value, "unconstrained") else value


def module_of(program: Any) -> nn.Module | None:
    """The module that a program is, or whose method it is; None if there is none.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> module_of(net.forward) is module_of(net) is net
        True
    """
    if isinstance(program, nn.Module):
        return program
    if isinstance(program, functools.partial):  # as Pyro's handlers make of programs
        return module_of(program.func)
    if inspect.ismethod(program):
        return module_of(program.__self__)
    return None


def named_parameters(module: nn.Module | None) -> dict[str, nn.Parameter]:
    """The unconstrained parameters of a `PyroModule` by the names that Pyro gives them, but with
    dots before the names of plain PyTorch modules' parameters; empty for anything else."""
    if not isinstance(module, PyroModule):
        return {}
    return {
        f"{module._pyro_name}.{name}".removeprefix(".").removesuffix("_unconstrained"): parameter
        for name, parameter in module.named_parameters()
    }


def local_parameters_marked(*programs: Callable[..., Any]) -> None:
    """Let SVI find plain parameters of modules where Pyro keeps them out of the param store.

    Under `pyro.settings.set(module_local_params=True)` Pyro forgets to say of an `nn.Parameter`
    what its unconstrained value is: itself.
    """
    if pyro.settings.get("module_local_params"):
        for program in programs:
            module = module_of(program)
            _mark(module.parameters() if module is not None else ())


def forget_namesakes(module: Any) -> None:
    """Drop entries of the param store that bear the names of a module's parameters but are not
    these parameters.

    Pyro's modules share parameters by name: without this, two guides of one class take on each
    other's values as soon as they are called. A module registers its own parameters again when
    it is called, so nothing is lost by dropping them. What the param store has read from a file is
    given to the module first: so is a fit gone on with. Anything but a `PyroModule` is left alone,
    and so is a guide without parameters yet, which Pyro fills from the param store.

    Args:
        module: a guide or model.

    Raises:
        ValueError: what was read from a file has another shape or type. Nothing has changed then.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoDelta
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> first = AutoDelta(model)
        >>> _ = first()
        >>> forget_namesakes(first)
        >>> list(pyro.get_param_store())
        ['AutoDelta.z']
        >>> with pyro.get_param_store().scope():  # another guide, set up where the first is not
        ...     second = AutoDelta(model)
        ...     _ = second()
        >>> forget_namesakes(second)
        >>> list(pyro.get_param_store())
        []
    """
    if not isinstance(module, PyroModule):
        return
    own = named_parameters(module)
    found = {
        name: (own[normalize_param_name(name)], entry)
        for name, entry in store_state()[0].items()
        if own.get(normalize_param_name(name), entry) is not entry
    }
    read = {name: pair for name, pair in found.items() if _was_read(pair[1])}
    for name, (mine, entry) in read.items():
        _check_alike(name, mine, entry)
    with torch.no_grad():
        for mine, entry in read.values():
            mine.copy_(entry)
    forget(found)


def _was_read(entry: Tensor) -> bool:
    """Whether a tensor comes from a file, and not from a module of this process: PyTorch gives
    those that it reads an empty dict of hooks, and new ones none."""
    return getattr(entry, "_backward_hooks", None) == {}


def _check_alike(name: str, mine: Tensor, entry: Tensor) -> None:
    if (entry.shape, entry.dtype) != (mine.shape, mine.dtype):
        raise ValueError(
            f"The param store has read '{name}' from a file as {entry.dtype} of shape "
            f"{tuple(entry.shape)}, but the module's is {mine.dtype} of shape {tuple(mine.shape)}: "
            "pass arguments of the same sizes and types as when it was saved, or call "
            "pyro.clear_param_store() to start afresh."
        )
