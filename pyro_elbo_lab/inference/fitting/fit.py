"""The training loop: one SVI fit and what it leaves behind."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
from pyro.infer import ELBO
from pyro.optim import ClippedAdam, PyroOptim
from torch import Tensor
from tqdm import tqdm

from pyro_elbo_lab.inference.fitting.batches import Batches, UsedUpError, usable
from pyro_elbo_lab.inference.fitting.inputs import (
    blaming_data,
    check_call,
    check_objective,
    check_program,
    check_settings,
    check_sites,
    warn_of_mixed_dtypes,
)
from pyro_elbo_lab.inference.fitting.learnt import Learnt
from pyro_elbo_lab.inference.fitting.result import Fit
from pyro_elbo_lab.inference.fitting.steps import Compile, Steps, Task, steps_of
from pyro_elbo_lab.programs.inventory import Inventory, inventory
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.pair import Pair, Program
from pyro_elbo_lab.programs.state import (
    forget,
    forget_namesakes,
    gradients_on,
    local_parameters_marked,
    module_of,
    named_parameters,
    random_states_kept,
    seeded,
    store_holding,
    store_state,
)
from pyro_elbo_lab.programs.training import Programs, run_both, set_up, training_programs

__all__ = ["Fit", "default_optimizer", "fit"]

Callback = Callable[[int, float], bool | None]


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

    A compiled fit runs whole steps, objective, gradients and optimizer, as one compiled graph: see
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

    Modules start from their own values, be they the guide, as every autoguide is, the model, or
    given to `pyro.module`: parameters that another module of the same name left in the param store
    are dropped from the store, which takes nothing from that other module. Everything else stays as
    it is and continues from where it is, as in SVI: `pyro.param` statements of a function, and what
    an optimizer has learnt in an earlier fit. Call `pyro.clear_param_store()` beforehand to start
    these afresh. The random state is the caller's again afterwards. Gradients are recorded also
    within `torch.no_grad()` and `torch.inference_mode()`.

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
            `DataLoader` yields. It is gone through again and again; when a generator, which can be
            gone through only once, is used up, the fit ends there with a warning.
        callbacks: called after every step with the number of steps so far and the loss; parameters
            are up to date then. The fit ends when one returns True.
        average: the share of the steps, from the end, over which parameters are averaged.
        seed: of everything random in the fit, the order of a `DataLoader` included.
        progress: whether to show a progress bar.
        kwargs: keyword arguments of model and guide.

    Returns:
        The losses and the fitted guide. Ctrl-C ends the fit early and returns the steps so far.

    Raises:
        TypeError: an argument of another kind; arguments that model or guide do not take; complex
            data.
        ValueError: an argument out of its range; `batches` that are empty or given beside `args`;
            no data, or NaN among them; a guide without sites; two modules with parameters of one
            name. Like a TypeError it comes before the first step, and the param store is as before.
        FloatingPointError: the loss became NaN; the message names the step. Parameters are those
            before this step. Or a parameter is NaN after the last step.

    Warns:
        UserWarning: the model mixes floating-point types, or cannot be compiled; `batches` were
            used up before the last step.

    Example:
        >>> import torch, pyro.distributions as dist
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
    check_settings(optimizer, num_steps, compile, callbacks, average, seed, progress)
    check_objective(objective)
    check_program("model", model)
    check_program("guide", guide)
    optimizer = default_optimizer(num_steps) if optimizer is None else optimizer
    average_from = num_steps - max(1, round(average * num_steps)) if average else None
    started = time.perf_counter()
    with gradients_on(), seeded(seed):
        stream = Batches(args, batches)
        first, kwargs = stream.first, usable(kwargs)
        pair = Pair(model, guide, first, kwargs)
        _prepare(pair)
        task = Task(
            pair, objective, optimizer, stream, stream.varying, average_from, num_steps,
            one_by_one=bool(callbacks),
        )  # fmt: skip
        known = set(optimizer.optim_objs)
        steps = steps_of(task, compile)
        losses = _train(task, steps, callbacks, progress)
        _refuse_nan_parameters(_named(set(optimizer.optim_objs), model, guide))
        new = _named({leaf for leaf in optimizer.optim_objs if leaf not in known}, model, guide)
        learnt = Learnt.of(training_programs(objective, pair), new)
    return Fit(
        losses=np.array(losses),
        seconds=time.perf_counter() - started,
        num_steps=len(losses),
        guide=guide,
        objective=objective,
        compile_seconds=steps.seconds,
        compilation=steps.note,
        averaged={name: value.clone() for name, value in steps.averages().items()},
        _learnt=learnt,
        _model=model,
        _args=first,
        _kwargs=kwargs,
        _batches=batches,
    )


def _prepare(pair: Pair) -> None:
    """Check a first run of model and guide, and let modules start from their own values."""
    arguments = check_call("model", pair.model, pair.args, pair.kwargs)
    check_call("guide", pair.guide, pair.args, pair.kwargs)
    traces: list[Any] = []
    programs = Programs(pair, lambda: traces.append(run_both(pair)))
    with blaming_data(arguments):
        set_up(pair)
        with random_states_kept(), store_holding(*store_state()):
            found, strangers = _first_run(programs)
    model_trace, guide_trace = traces[-1]
    check_sites(model_trace, guide_trace, arguments, list(found.leaves.values()))
    warn_of_mixed_dtypes(model_trace)
    _forget(programs, strangers)
    local_parameters_marked(pair.model, pair.guide)


def _first_run(programs: Programs) -> tuple[Inventory, list[str]]:
    """What model and guide have, and what others of the same names have left in the store."""
    _forget(programs, ())
    found = inventory(programs.run)
    if not found.strangers:
        return found, []
    found = inventory(programs.run)  # by now pyro.module may have handed over the store's own
    strangers = list(found.strangers)
    _forget(programs, strangers)
    found = inventory(programs.run)
    if found.strangers:
        raise ValueError(
            f"Two modules of model and guide have a parameter '{min(found.strangers)}'. The param "
            "store takes one of each name, and the other would not be trained: give the modules "
            "different names, as in PyroModule(name='guide') or pyro.module('guide', ...)."
        )
    return found, strangers


def _forget(programs: Programs, names: Iterable[str]) -> None:
    forget_namesakes(module_of(programs.pair.guide))
    forget_namesakes(module_of(programs.pair.model))
    forget(names)


def _named(leaves: set[Tensor], *programs: Program) -> dict[str, Tensor]:
    """Parameters by their names in modules or in the param store."""
    names = dict(pyro.get_param_store().named_parameters())
    for program in programs:
        names |= named_parameters(module_of(program))
    known = {id(leaf): name for name, leaf in reversed(names.items())}
    return {known[id(leaf)]: leaf for leaf in leaves if id(leaf) in known}


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
                try:
                    steps.take(losses)
                except UsedUpError:
                    if steps.confirm(losses):
                        raise
                    call()
                    continue
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
        except UsedUpError:
            warn(
                f"batches were used up after {len(losses)} of {task.num_steps} steps, and the fit "
                "ends there: a generator can be gone through only once. Pass a list, a DataLoader "
                "or a generator without end."
            )
        finally:
            steps.settle()
        if losses and math.isnan(losses[-1]):
            _refuse_nan(task, steps.latest, losses)
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


def _refuse_nan(task: Task, batch: tuple, losses: Sequence[float]) -> None:
    before = f"it was {losses[-2]:.6g} before" if len(losses) > 1 else "there is no step before"
    found = ""
    try:
        task.objective.loss(task.pair.model, task.pair.guide, *batch, **task.pair.kwargs)
    except (ValueError, RuntimeError) as error:  # names the site, or the matrix
        found = f" {error}"
    raise FloatingPointError(
        f"The loss became NaN at step {len(losses)}; {before}. Look for NaN in the data or "
        "a log-density that is not finite at the guide's draws "
        f"(pyro.enable_validation(True) names the site); otherwise lower the learning rate.{found}"
    )


def _refuse_nan_parameters(leaves: Mapping[str, Tensor]) -> None:
    for name, leaf in leaves.items():
        if leaf.isnan().any():
            raise FloatingPointError(
                f"The last step made {int(leaf.isnan().sum())} of the {leaf.numel()} elements of "
                f"parameter '{name}' NaN, while the loss before it was finite: its gradient is not "
                "finite. Look for a log-density without a slope at the guide's draws, such as a "
                "square root at 0; otherwise lower the learning rate."
            )
