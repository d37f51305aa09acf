"""The training loop: one SVI fit and what it leaves behind."""

import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI
from pyro.nn import PyroModule
from pyro.optim import ClippedAdam, PyroOptim
from pyro.params.param_store import normalize_param_name
from tqdm import tqdm

__all__ = ["Fit", "default_optimizer", "fit", "forget_namesakes", "seeded"]

Program = Callable[..., Any]


@dataclass(frozen=True)
class Fit:
    """A finished fit.

    Attributes:
        losses: the objective's loss at every step, in nats, shape (num_steps,).
        seconds: wall time of the training.
        num_steps: the steps taken: fewer than asked for if the fit was interrupted.
        guide: the guide, whose parameters are now the fitted ones.
        objective: the objective that was minimised.
    """

    losses: np.ndarray
    seconds: float
    num_steps: int
    guide: Program
    objective: ELBO


def fit(
    model: Program,
    guide: Program,
    *args: Any,
    objective: ELBO,
    optimizer: PyroOptim | None = None,
    num_steps: int = 2000,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> Fit:
    """Train a guide with stochastic variational inference (`pyro.infer.SVI`).

    A guide that is a `PyroModule`, as every autoguide is, starts from its own values: parameters
    that another guide of the same name left in the param store are dropped from the store, which
    takes nothing from that other guide. Everything else stays as it is and continues from where it
    is, as in SVI: `pyro.param` statements of a function, and the parameters of the model. Call
    `pyro.clear_param_store()` beforehand to start these afresh. The random state is the caller's
    again afterwards.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of model and guide.
        objective: the loss, such as `StandardELBO()`.
        optimizer: as `SVI` takes it; by default `default_optimizer(num_steps)`.
        num_steps: the number of gradient steps, at least 1.
        seed: of everything random in the fit.
        progress: whether to show a progress bar.
        kwargs: keyword arguments of model and guide.

    Returns:
        The losses and the fitted guide. Ctrl-C ends the fit early and returns the steps so far.

    Raises:
        ValueError: `num_steps` is below 1.
        FloatingPointError: the loss became NaN; the message names the step.

    Warns:
        UserWarning: the model mixes floating-point types.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(3.0))
        >>> guide = AutoNormal(model)
        >>> result = fit(model, guide, objective=Trace_ELBO(), num_steps=500, progress=False)
        >>> result.losses.shape, f"{guide.median()['z']:.1f}"
        ((500,), '1.5')
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    svi = SVI(model, guide, optimizer or default_optimizer(num_steps), loss=objective)
    losses: list[float] = []
    started = time.perf_counter()
    with seeded(seed):
        _start_afresh(guide, args, kwargs)
        warn_of_mixed_dtypes(model, args, kwargs)
        with tqdm(total=num_steps, desc="SVI", disable=not progress) as bar:
            try:
                while len(losses) < num_steps:
                    losses.append(_step(svi, losses, args, kwargs))
                    bar.update()
                    if len(losses) % 100 == 0:
                        bar.set_postfix(loss=f"{np.mean(losses[-100:]):.4g}", refresh=False)
            except KeyboardInterrupt:
                bar.write(f"Interrupted after {len(losses)} of {num_steps} steps.")
    return Fit(
        losses=np.array(losses),
        seconds=time.perf_counter() - started,
        num_steps=len(losses),
        guide=guide,
        objective=objective,
    )


def default_optimizer(num_steps: int) -> ClippedAdam:
    """Adam with a learning rate that falls from 0.05 to 0.0005 in `num_steps`.

    The fall is geometric, so that the noise of the last steps averages out. Gradients are not
    clipped: clipping the elements of a heavy-tailed unbiased gradient, such as that of a narrow
    full-rank guide, makes it biased. (With Pyro's bound of 10, a full-rank guide of the logistic
    regression in the project's `models` ends 5 nats lower after 2000 steps of one particle.) Ten
    particles and 2000 steps bring a full-rank guide of the linear regression there to 0.01 to 0.27
    nats below the evidence, by the seed.

    Example:
        >>> default_optimizer(100).pt_optim_args["lr"]
        0.05
    """
    return ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / num_steps), "clip_norm": math.inf})


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, numpy and Python's random inside the block, and restore their states after it.

    Example:
        >>> with seeded(1):
        ...     first = torch.rand(())
        >>> with seeded(1):
        ...     assert torch.rand(()) == first
    """
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            pyro.set_rng_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


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


def warn_of_mixed_dtypes(model: Program, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Warn, naming a site of each, when a model's sites have more than one floating-point type."""
    with torch.no_grad(), poutine.block():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    examples: dict[torch.dtype, str] = {}
    for name, site in trace.nodes.items():
        value = site["value"] if site["type"] == "sample" else None
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            examples.setdefault(value.dtype, name)
    if len(examples) > 1:
        found = ", ".join(f"'{name}' is {dtype}" for dtype, name in examples.items())
        warnings.warn(
            f"The model mixes floating-point types: {found}. Python floats as arguments of a "
            "distribution give samples of torch's default dtype; build them from the data's dtype "
            "instead, as in dist.Normal(y.new_zeros(()), 1).",
            stacklevel=3,
        )


def _start_afresh(guide: Program, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Let a guide module create its parameters out of sight of the param store's old ones."""
    if isinstance(guide, PyroModule):
        with torch.no_grad(), poutine.block(), pyro.get_param_store().scope():
            guide(*args, **kwargs)
        forget_namesakes(guide)


def _step(svi: SVI, losses: list[float], args: tuple, kwargs: Mapping[str, Any]) -> float:
    loss = svi.step(*args, **kwargs)
    if math.isnan(loss):
        before = f"it was {losses[-1]:.6g} before" if losses else "there is no step before"
        raise FloatingPointError(
            f"The loss became NaN at step {len(losses) + 1}; {before}. Look for NaN in the data or "
            "a log-density that is not finite at the guide's draws "
            "(pyro.enable_validation(True) names the site); otherwise lower the learning rate."
        )
    return loss
