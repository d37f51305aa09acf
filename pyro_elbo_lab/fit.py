"""The training loop: one SVI fit and what it leaves behind."""

import itertools
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from matplotlib.axes import Axes
from pyro import poutine
from pyro.infer import ELBO
from pyro.nn import PyroModule
from pyro.optim import ClippedAdam, PyroOptim
from torch import Tensor
from tqdm import tqdm
from xarray import Dataset, DataTree

from pyro_elbo_lab.convert import from_guide
from pyro_elbo_lab.evaluation import parameters
from pyro_elbo_lab.state import forget_namesakes, random_states_kept, seeded
from pyro_elbo_lab.steps import Compile, Steps, Task, steps_of

__all__ = ["Fit", "default_optimizer", "fit"]

Program = Callable[..., Any]
Callback = Callable[[int, float], bool | None]


@dataclass(frozen=True)
class Fit:
    """A finished fit.

    Attributes:
        losses: the objective's loss at every step, in nats, shape (num_steps,).
        seconds: wall time of the training, compiling included.
        num_steps: the steps taken: fewer than asked for if the fit was interrupted.
        guide: the guide, whose parameters are now the fitted ones.
        objective: the objective that was minimised.
        compile_seconds: what of the wall time it took to capture and compile the step.
        compilation: how steps were taken, and why.
        parameters: the fitted unconstrained parameters of model and guide, by name.
        averaged: their averages over the last steps, if these were asked for.
    """

    losses: np.ndarray
    seconds: float
    num_steps: int
    guide: Program
    objective: ELBO
    compile_seconds: float = 0.0
    compilation: str = "eager"
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    averaged: Mapping[str, Tensor] = field(default_factory=dict)
    _model: Program | None = field(default=None, repr=False)
    _args: tuple = field(default=(), repr=False)
    _kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def posterior(self, num_samples: int = 1000, seed: int = 0) -> DataTree:
        """Draws from the guide, scored by guide and model: see `from_guide`.

        The tree also has what `compare` says about the training: a group `training` with `loss`
        over the steps, and the attributes `seconds` and `gradient_evaluations`, of single
        particles.

        Args:
            num_samples: how many.
            seed: of the draws.

        Raises:
            ValueError: the fit was loaded without a model.
        """
        if self._model is None:
            raise ValueError("This fit was loaded without a model: call from_guide yourself.")
        self.restore()
        with seeded(seed):
            tree = from_guide(
                self.guide, self._model, *self._args, num_samples=num_samples, **self._kwargs
            )
        tree["training"] = DataTree(Dataset({"loss": ("step", self.losses)}))
        particles = int(getattr(self.objective, "num_particles", 1))
        tree.attrs |= {
            "seconds": float(self.seconds),
            "gradient_evaluations": self.num_steps * particles,
        }
        return tree

    def restore(self, averaged: bool = False) -> None:
        """Give the parameters the values that this fit ended with, or their averages.

        Args:
            averaged: whether to take the averages.

        Raises:
            ValueError: there are no averages, or a parameter that has another shape or is missing.
        """
        if averaged and not self.averaged:
            raise ValueError("No averages were kept: call fit(..., average=0.5), for example.")
        _assign({**self.parameters, **self.averaged} if averaged else self.parameters)

    def plot_loss(self, ax: Axes | None = None) -> Axes:
        """Draw the losses over the steps, and their running median.

        Args:
            ax: where to draw, by default on new axes.
        """
        from pyro_elbo_lab.plots import plot_loss

        return plot_loss(self.losses, ax)

    def save(self, path: str | Path) -> None:
        """Write everything but the programs to a file, which `load` reads.

        Args:
            path: of the file.
        """
        names = ("num_steps", "seconds", "compile_seconds", "compilation")
        content = {name: getattr(self, name) for name in names}
        content["losses"] = torch.from_numpy(self.losses)
        content["parameters"] = dict(self.parameters)
        content["averaged"] = dict(self.averaged)
        torch.save(content, path)

    @staticmethod
    def load(
        path: str | Path,
        model: Program,
        guide: Program,
        *args: Any,
        objective: ELBO,
        **kwargs: Any,
    ) -> "Fit":
        """Read a fit, and give the parameters of model and guide its values.

        Args:
            path: of the file.
            model: the model that was fitted.
            guide: a guide of the same kind as the fitted one.
            args: positional arguments of both.
            objective: the objective that was minimised.
            kwargs: keyword arguments of both.

        Raises:
            ValueError: a parameter has another shape, or is missing.
        """
        content = torch.load(path, weights_only=True)
        content["losses"] = content["losses"].numpy()
        _start_afresh(guide, args, kwargs)
        _parameters(objective, model, guide, args, kwargs)
        result = Fit(
            guide=guide, objective=objective, _model=model, _args=args, _kwargs=kwargs, **content
        )
        result.restore()
        return result


def fit(
    model: Program,
    guide: Program,
    *args: Any,
    objective: ELBO,
    optimizer: PyroOptim | None = None,
    num_steps: int = 2000,
    compile: Compile = "auto",
    batches: Iterable[Any] | None = None,
    callbacks: Sequence[Callback] = (),
    average: float = 0.0,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> Fit:
    """Train a guide with stochastic variational inference.

    A compiled fit runs whole steps, objective, gradients and optimiser, as one compiled graph: see
    `compiled` for what can be captured, and how the graph is compared with eager runs. Its random
    numbers are drawn for many steps at once, from the same distributions as those of an eager fit
    but as another stream; with `batches` or `callbacks`, which take one step at a time, it is the
    same stream. What cannot be compiled runs eagerly (`pyro.infer.SVI`), and a warning says why.
    Adam, AdamW, SGD and ClippedAdam of `pyro.optim` are compiled, also under a learning rate
    schedule of `pyro.optim`; with others, with gradients that the optimizer clips, and with options
    that differ from parameter to parameter the loss alone is.

    As the fit goes on, its graph is compared with an eager run now and then, and at the end. If
    they differ, something that the programs read has changed unseen: the steps since the last
    comparison that was good are undone and taken again eagerly, on the same batches, and so is the
    rest of the fit; a warning names the steps. Callbacks are called again for these steps, and once
    for the step before them, to set again what they set by the number of the step. Arguments of
    another shape and numbers that change get a graph of their own, at most three, once many steps
    have met them; other such steps run eagerly.

    A guide that is a `PyroModule`, as every autoguide is, starts from its own values: parameters
    that another guide of the same name left in the param store are dropped from the store, which
    takes nothing from that other guide. Everything else stays as it is and continues from where it
    is, as in SVI: `pyro.param` statements of a function, the parameters of the model, and what an
    optimizer has learnt in an earlier fit. Call `pyro.clear_param_store()` beforehand to start
    these afresh. The random state is the caller's again afterwards.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of model and guide.
        objective: the loss, such as `StandardELBO()`.
        optimizer: as `SVI` takes it; by default `default_optimizer(num_steps)`. Learning rate
            schedules move on after every step.
        num_steps: the number of gradient steps, at least 1.
        compile: True, False, or "auto": compile if the fit is long enough to pay it back.
        batches: positional arguments step by step in place of `args`: tensors or tuples, such as a
            `DataLoader` yields. It is gone through again and again.
        callbacks: called after every step with the number of steps so far and the loss; parameters
            are up to date then. The fit ends when one returns True.
        average: the share of the steps, from the end, over which parameters are averaged.
        seed: of everything random in the fit.
        progress: whether to show a progress bar.
        kwargs: keyword arguments of model and guide.

    Returns:
        The losses and the fitted guide. Ctrl-C ends the fit early and returns the steps so far.

    Raises:
        ValueError: `num_steps` is below 1, `average` not in 0 to 1, `batches` are empty or given
            beside `args`.
        FloatingPointError: the loss became NaN; the message names the step. Parameters are those
            before this step.

    Warns:
        UserWarning: the model mixes floating-point types, or cannot be compiled.

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
    if not 0 <= average <= 1:
        raise ValueError(f"average must be a share of the steps, from 0 to 1, got {average}.")
    first, forever = _arguments(args, batches)
    optimizer = optimizer or default_optimizer(num_steps)
    average_from = num_steps - max(1, round(average * num_steps)) if average else None
    task = Task(
        model, guide, objective, optimizer, forever, first, kwargs, batches is not None,
        average_from, num_steps, bool(callbacks),
    )  # fmt: skip
    started = time.perf_counter()
    with seeded(seed):
        _start_afresh(guide, first, kwargs)
        warn_of_mixed_dtypes(model, first, kwargs)
        steps = steps_of(task, compile)
        losses = _train(task, steps, callbacks, progress)
    return Fit(
        losses=np.array(losses),
        seconds=time.perf_counter() - started,
        num_steps=len(losses),
        guide=guide,
        objective=objective,
        compile_seconds=steps.seconds,
        compilation=steps.note,
        parameters=_parameters(objective, model, guide, first, kwargs),
        averaged={name: value.clone() for name, value in steps.averages().items()},
        _model=model,
        _args=first,
        _kwargs=kwargs,
    )


def _train(task: Task, steps: Steps, callbacks: Sequence[Callback], progress: bool) -> list[float]:
    losses: list[float] = []

    def call() -> bool:
        return any([bool(losses) and callback(len(losses), losses[-1]) for callback in callbacks])

    with tqdm(total=task.num_steps, desc="SVI", disable=not progress) as bar, _stoppable() as stop:
        if progress and steps.seconds:
            bar.write(f"{steps.note}; {steps.seconds:.1f} s to compile.")
            bar.unpause()
        try:
            while len(losses) < task.num_steps and not stop():
                before = len(losses)
                steps.take(losses)
                bar.update(len(losses) - before)
                if losses and math.isnan(losses[-1]):
                    break
                if len(losses) > before + 1 or len(losses) % 100 == 0:
                    bar.set_postfix(loss=f"{np.mean(losses[-100:]):.4g}", refresh=False)
                ends = call()  # after steps were undone, to set again what it sets by the step
                if ends and len(losses) > before:
                    if steps.confirm(losses):
                        break
                    call()
            steps.confirm(losses)
        except KeyboardInterrupt:
            pass
        finally:
            steps.settle()
        if losses and math.isnan(losses[-1]):
            _refuse_nan(task, losses)
        if progress and len(losses) < task.num_steps and not callbacks:
            bar.write(f"Interrupted after {len(losses)} of {task.num_steps} steps.")
    return losses


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


def _arguments(args: tuple, batches: Iterable[Any] | None) -> tuple[tuple, Iterator[tuple]]:
    """The first step's positional arguments, and those of all steps."""
    if batches is None:
        return args, itertools.repeat(args)
    if args:
        raise ValueError("Positional arguments come from args or from batches, not from both.")
    forever = _forever(batches)
    first = next(forever, None)
    if first is None:
        raise ValueError("batches is empty.")
    return first, itertools.chain([first], forever)


def _forever(batches: Iterable[Any]) -> Iterator[tuple]:
    while True:
        batch = None
        for batch in batches:
            yield tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        if batch is None:
            return


def _parameters(
    objective: ELBO, model: Program, guide: Program, args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, Tensor]:
    with random_states_kept():
        names, leaves = parameters(objective, model, guide, args, dict(kwargs))
    return {name: leaf.detach().clone() for name, leaf in zip(names, leaves, strict=True)}


def _assign(values: Mapping[str, Tensor]) -> None:
    store = pyro.get_param_store()
    for name, value in values.items():
        if name not in store:
            raise ValueError(f"There is no parameter '{name}' to give the fitted value to.")
        leaf = store[name].unconstrained()
        if leaf.shape != value.shape:
            raise ValueError(
                f"Parameter '{name}' has the unconstrained shape {tuple(leaf.shape)}, the fit one "
                f"of {tuple(value.shape)}."
            )
        with torch.no_grad():
            leaf.copy_(value)


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Inside the block Ctrl-C lets a step come to its end; the function tells whether it came."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _refuse_nan(task: Task, losses: Sequence[float]) -> None:
    before = f"it was {losses[-2]:.6g} before" if len(losses) > 1 else "there is no step before"
    found = ""
    try:
        task.objective.loss(task.model, task.guide, *task.first, **task.kwargs)
    except (ValueError, RuntimeError) as error:  # names the site, or the matrix
        found = f" {error}"
    raise FloatingPointError(
        f"The loss became NaN at step {len(losses)}; {before}. Look for NaN in the data or "
        "a log-density that is not finite at the guide's draws "
        f"(pyro.enable_validation(True) names the site); otherwise lower the learning rate.{found}"
    )
