"""The ways to train that are compared, each ready to take any number of steps."""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import ELBO, SVI, JitTrace_ELBO, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn

from pyro_elbo_lab import StandardELBO
from pyro_elbo_lab.compilation.compiled_objective import compiled
from pyro_elbo_lab.inference.fitting.steps import Task, steps_of
from pyro_elbo_lab.programs.pair import Pair
from tests.benchmarks.harness import Contender
from tests.benchmarks.problems import Problem

LEARNING_RATE = 0.01

PYRO, JIT = "Pyro Trace_ELBO", "Pyro JitTrace_ELBO"
EAGER, COMPILED, FIT = "ours, eager", "compiled() in SVI", "compiled fit"
FUSED = "compiled() in SVI, fused Adam"
NUMPYRO = "NumPyro scan"


def contenders(
    problem: Problem, num_particles: int, device: str, with_numpyro: bool
) -> list[Contender]:
    """All of them, on the plain ELBO."""
    particles = _particles(num_particles)
    jit = JitTrace_ELBO(**particles, ignore_jit_warnings=True)
    return [
        by_pyro(problem, num_particles, device),
        by_svi(JIT, problem, jit, device),
        *of_objective(lambda: StandardELBO(**particles), problem, device),
        by_svi(FUSED, problem, compiled(StandardELBO(**particles)), device, fused=True),
        *([by_scan(problem, num_particles)] if with_numpyro else []),
    ]


def _particles(num_particles: int) -> dict[str, Any]:
    return {"num_particles": num_particles, "vectorize_particles": num_particles > 1}


def of_objective(make: Callable[[], ELBO], problem: Problem, device: str) -> list[Contender]:
    """An objective of ours: eager, compiled in SVI, and as a compiled fit."""
    return [
        by_svi(EAGER, problem, make(), device),
        by_svi(COMPILED, problem, compiled(make()), device),
        by_fit(problem, make(), device),
    ]


def programs(problem: Problem, device: str) -> tuple[Any, Any, tuple[Tensor, ...]]:
    """The model, a new guide and the data."""
    guide = problem.make_guide(problem.model)
    if isinstance(guide, nn.Module):
        guide.to(device)
    return problem.model, guide, tuple(x.to(device) for x in problem.data())


def by_pyro(problem: Problem, num_particles: int, device: str) -> Contender:
    """Pyro as it is."""
    return by_svi(PYRO, problem, Trace_ELBO(**_particles(num_particles)), device)


def by_svi(
    name: str, problem: Problem, loss: ELBO, device: str, fused: bool | None = None
) -> Contender:
    """`pyro.infer.SVI`, step by step; `fused` is PyTorch's option of Adam, one kernel a step."""
    model, guide, args = programs(problem, device)
    svi = SVI(model, guide, Adam({"lr": LEARNING_RATE, "fused": fused}), loss=loss)

    def take(num_steps: int) -> None:
        for _ in range(num_steps):
            svi.step(*args)

    return Contender(name, _in_store_of_its_own(take))


def by_fit(problem: Problem, objective: ELBO, device: str) -> Contender:
    """The loop of a compiled `fit`, which here can be left and entered again."""
    model, guide, args = programs(problem, device)
    optimizer = Adam({"lr": LEARNING_RATE})
    steps: Any = None
    losses: list[float] = []

    def take(num_steps: int) -> int:
        nonlocal steps
        if steps is None:
            guide(*args)
            forever = itertools.repeat(args)
            task = Task(
                Pair(model, guide, args), objective, optimizer, forever, varying=False,
                average_from=None, num_steps=10**9, one_by_one=False,
            )  # fmt: skip
            steps = steps_of(task, True)
            if not steps.note.startswith("compiled: "):
                raise RuntimeError(f"{problem.name} was not compiled: {steps.note}")
        before = len(losses)
        while len(losses) < before + num_steps:
            steps.take(losses)  # blocks of a size of its own
        assert np.isfinite(losses[-1])
        return len(losses) - before

    return Contender(FIT, _in_store_of_its_own(take))


def _in_store_of_its_own(take: Callable[[int], int | None]) -> Callable[[int], int | None]:
    """Parameters are global and known by name: those of other contenders stay out of sight."""
    store = pyro.get_param_store()
    with store.scope() as state:
        pass

    def run(num_steps: int) -> int | None:
        with store.scope(state), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit")
            taken = take(num_steps)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return taken

    return run


def by_scan(problem: Problem, num_particles: int) -> Contender:
    """NumPyro's SVI, any number of steps as one `lax.scan`."""
    import jax
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.optim import Adam

    from tests.benchmarks.numpyro_models import GUIDES, MODELS

    model = MODELS[problem.name]
    guide = GUIDES[problem.name](model)
    svi = SVI(model, guide, Adam(LEARNING_RATE), Trace_ELBO(num_particles=num_particles))
    data = tuple(jax.numpy.asarray(x.numpy()) for x in problem.data())
    state: Any = None

    def scan(state: Any, data: Any, num_steps: int) -> Any:
        return jax.lax.scan(lambda s, _: svi.update(s, *data), state, length=num_steps)

    scan = jax.jit(scan, static_argnums=2)

    def take(num_steps: int) -> None:
        nonlocal state
        if state is None:
            state = svi.init(jax.random.key(0), *data)
        state, losses = scan(state, data, num_steps)
        assert np.isfinite(losses.block_until_ready()[-1])

    return Contender(NUMPYRO, take)
