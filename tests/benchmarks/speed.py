"""Time of a training step: Pyro, ours eager and compiled, and NumPyro, in turn on one thread.

Run from the project's root: python -m tests.benchmarks.speed [--quick] [--out FILE]

Gradient and Adam, plates of K particles. Every contender has a short burst of steps in every round;
ratios are taken within rounds, and the tables have their medians and quartiles.
"""

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from pyro.infer import ELBO

from pyro_elbo_lab import ImportanceWeightedELBO, StandardELBO
from tests.benchmarks import harness
from tests.benchmarks.contenders import (
    COMPILED,
    EAGER,
    FIT,
    FUSED,
    JIT,
    NUMPYRO,
    PYRO,
    contenders,
    of_objective,
)
from tests.benchmarks.harness import number, say, spread, table
from tests.benchmarks.problems import MNIST, PER_ROW, PROBLEMS, Problem

Times = Mapping[str, np.ndarray]

PARTICLES = [1, 16, 64]
TOO_LARGE = {("VAE", 64)}  # half a second a step

RATIOS = {
    "Pyro / compiled fit": (PYRO, FIT),
    "Pyro Jit / compiled fit": (JIT, FIT),
    "Pyro / compiled() in SVI": (PYRO, COMPILED),
    "the same, fused Adam": (PYRO, FUSED),
    "Pyro / ours, eager": (PYRO, EAGER),
    "compiled fit / NumPyro": (FIT, NUMPYRO),
}


def importance_weighted() -> ELBO:
    """K = 16, doubly reparameterized; local plates have weights of their own by default."""
    return ImportanceWeightedELBO(16, gradient="doubly_reparameterized", vectorize_particles=True)


OBJECTIVES: dict[str, tuple[Problem, Callable[[], ELBO]]] = {
    "importance-weighted, eight schools": (PROBLEMS["eight schools"], importance_weighted),
    "importance-weighted, logistic": (PROBLEMS["logistic"], importance_weighted),
    "importance-weighted, radon": (PROBLEMS["radon"], importance_weighted),
    "importance-weighted, 1000 cells": (PER_ROW, importance_weighted),
    "plain ELBO, 1000 local latents": (PER_ROW, StandardELBO),
}


def steps_table(times: Mapping[tuple[str, int], Times], note: str) -> str:
    """Microseconds a step."""
    names = [PYRO, JIT, EAGER, COMPILED, FUSED, FIT, NUMPYRO]
    rows = [
        [model, k, *(number(np.median(t[name])) if name in t else "-" for name in names)]
        for (model, k), t in times.items()
    ]
    return table("µs a step (gradient and Adam), medians", ["model", "K", *names], rows, note)


def ratios_table(times: Mapping[tuple[str, int], Times]) -> str:
    """Ratios within rounds."""
    rows = [
        [model, k, *(ratio(t, above, below) for above, below in RATIOS.values())]
        for (model, k), t in times.items()
    ]
    return table("Ratios of these times, median (quartiles)", ["model", "K", *RATIOS], rows)


def ratio(times: Times, above: str, below: str) -> str:
    """The ratio of two contenders; a dash if one did not run."""
    return spread(times[above] / times[below]) if {above, below} <= set(times) else "-"


def objectives_table(rounds: int, device: str) -> str:
    """Other objectives, against their eager selves."""
    rows = []
    for name, (problem, make) in OBJECTIVES.items():
        say(name)
        times = harness.interleaved(of_objective(make, problem, device), rounds)
        medians = [number(np.median(times[n])) for n in (EAGER, COMPILED, FIT)]
        rows.append([name, *medians, ratio(times, EAGER, COMPILED), ratio(times, EAGER, FIT)])
    header = ["objective", EAGER, COMPILED, FIT, "eager / compiled() in SVI", "eager / fit"]
    note = "Importance weights: K = 16, doubly reparameterized, local plates as cells."
    return table("Other objectives, µs a step and ratios", header, rows, note)


def main() -> None:
    """Print the tables."""
    parser = harness.arguments(__doc__, list(PROBLEMS))
    parser.add_argument("--particles", nargs="+", type=int, default=PARTICLES)
    parser.add_argument("--rounds", type=int, help="15 by default")
    options = parser.parse_args()
    rounds = options.rounds or (3 if options.quick else 15)
    harness.use_one_thread()
    with_numpyro = harness.has_numpyro(options.device)
    warnings.simplefilter("once")
    times = {}
    for model in options.models:
        for k in [1] if options.quick else options.particles:
            if (model, k) in TOO_LARGE:
                continue
            say(f"{model}, K = {k}")
            entrants = contenders(PROBLEMS[model], k, options.device, with_numpyro)
            times[model, k] = harness.interleaved(entrants, rounds)
    images = "binarized MNIST" if MNIST.exists() else "random images of MNIST's size"
    note = (
        f"{harness.machine(options.device)} One thread, {rounds} rounds in turn. "
        "Ours has its default gradients, without the score terms that Pyro's and NumPyro's have. "
        f"VAE: 784-200-50, batches of 128 of {images}; not run at K = 64."
    )
    harness.publish(steps_table(times, note), options.out)
    harness.publish(ratios_table(times), options.out)
    harness.publish(objectives_table(rounds, options.device), options.out)


if __name__ == "__main__":
    main()
