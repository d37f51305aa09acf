"""What Pyro, PyTorch, numpy and Python keep for the whole process: random states, parameters."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.nn import PyroModule
from pyro.params.param_store import normalize_param_name

__all__ = ["foreign_random_states", "forget_namesakes", "random_states_kept", "seeded"]


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


def forget_namesakes(module: Any) -> None:
    """Drop entries of the param store that bear the names of a module's parameters but are not
    these parameters.

    Pyro's modules share parameters by name: without this, two guides of one class take on each
    other's values as soon as they are called. A module registers its own parameters again when
    it is called, so nothing is lost by dropping them. Anything but a `PyroModule` is left alone,
    and so is a guide without parameters yet, which Pyro fills from the param store.

    Args:
        module: a guide or model.

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
    store = pyro.get_param_store()
    own = {
        f"{module._pyro_name}.{name}".removeprefix(".").removesuffix("_unconstrained"): parameter
        for name, parameter in module.named_parameters()
    }
    for name, parameter in list(store.named_parameters()):
        if own.get(normalize_param_name(name), parameter) is not parameter:
            del store[name]
