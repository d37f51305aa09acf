"""What compiling costs: seconds cold, new and warm, whole fits, steps to pay it back, memory.

Run from the project's root: python -m tests.benchmarks.compile_cost [--quick] [--out FILE]

Every fit has a process of its own, on one thread (the compilers may use all cores). Cold is the
first one with an empty cache folder, as on a machine that has never compiled anything; warm is the
next one with that folder; new is the first fit of the model with a folder that has seen another
model. Imports are not timed. One particle, plain ELBO.
"""

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks import harness
from tests.benchmarks.harness import in_process, number, say, table
from tests.benchmarks.problems import PROBLEMS

NUM_STEPS = 20_000
SHORT = {"VAE": 1000}  # these steps take milliseconds: fewer, and the rest by the rule of three
EAGER_STEPS = 300

Costs = dict[str, float]

_OURS = ("cold", "new", "warm")


def measure(contender: str, model: str, num_steps: int, device: str) -> Costs:
    """One fit in this process.

    Returns:
        `compiling`, the seconds of it; `step`, the seconds of a step; `memory`, what the fit added
        to the largest resident size of the process, in MB.
    """
    from tests.benchmarks import contenders

    if contender == "NumPyro":
        from tests.benchmarks import numpyro_models  # noqa: F401
    problem = PROBLEMS[model]
    fits: dict[str, Callable[[], tuple[float, float]]] = {
        "Pyro": lambda: _steps(contenders.by_pyro(problem, 1, device), num_steps),
        "ours": lambda: _our_fit(problem, num_steps, device),
        "NumPyro": lambda: _steps(contenders.by_scan(problem, 1), num_steps),
    }
    before = _memory()
    compiling, stepping = fits[contender]()
    added = _memory() - before
    return {"compiling": compiling, "step": stepping / num_steps, "memory": added}


def _steps(contender: harness.Contender, num_steps: int) -> tuple[float, float]:
    """Seconds that a first run takes longer than a second, and of the second."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        contender.run(num_steps)
        seconds.append(time.perf_counter() - started)
    return seconds[0] - seconds[1], seconds[1]


def _our_fit(problem: Any, num_steps: int, device: str) -> tuple[float, float]:
    from pyro.optim import Adam

    from pyro_elbo_lab import StandardELBO, fit
    from tests.benchmarks.contenders import LEARNING_RATE, programs

    model, guide, args = programs(problem, device)
    started = time.perf_counter()
    result = fit(
        model,
        guide,
        *args,
        objective=StandardELBO(),
        optimizer=Adam({"lr": LEARNING_RATE}),
        num_steps=num_steps,
        compile=True,
        progress=False,
    )
    seconds = time.perf_counter() - started
    return result.compile_seconds, seconds - result.compile_seconds


def _memory() -> float:
    """The most that this process has had in memory so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def compare(model: str, num_steps: int, device: str, with_numpyro: bool) -> dict[str, Costs]:
    """The costs of a model's fits by contender: Pyro, ours cold, new and warm, NumPyro."""

    def run(contender: str, steps: int, model: str = model, **environment: str) -> Costs:
        say(f"{model}: {contender}, {steps} steps")
        options = ["--run", contender, model, str(steps), "--device", device]
        return in_process("compile_cost", *options, **environment)

    taken = min(num_steps, SHORT.get(model, num_steps))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            found[name] = run("ours", taken, TORCHINDUCTOR_CACHE_DIR=folder)
    with tempfile.TemporaryDirectory() as folder:
        another = next(name for name in PROBLEMS if name != model)
        run("ours", 1, another, TORCHINDUCTOR_CACHE_DIR=folder)
        found["new"] = run("ours", taken, TORCHINDUCTOR_CACHE_DIR=folder)
    found["Pyro"] = run("Pyro", min(num_steps, EAGER_STEPS))
    if with_numpyro:
        found["NumPyro"] = run("NumPyro", taken)
    return found


def compile_row(model: str, found: dict[str, Costs]) -> list[str]:
    """Seconds to compile, and the steps that pay them back."""
    seconds = [cost(found, name, lambda c: c["compiling"]) for name in (*_OURS, "NumPyro")]
    saved = found["Pyro"]["step"] - found["warm"]["step"]
    steps = [
        cost(found, name, lambda c: c["compiling"] / saved if saved > 0 else math.inf)
        for name in _OURS
    ]
    return [model, *seconds, *steps]


def fit_row(model: str, found: dict[str, Costs], num_steps: int) -> list[str]:
    """Seconds of a whole fit, and their ratios to NumPyro's."""

    def whole(costs: Costs) -> float:
        return costs["compiling"] + num_steps * costs["step"]

    seconds = [cost(found, name, whole) for name in ("Pyro", *_OURS, "NumPyro")]
    theirs = whole(found["NumPyro"]) if "NumPyro" in found else math.nan
    ratios = [cost(found, name, lambda c: whole(c) / theirs) for name in _OURS]
    return [model, *seconds, *ratios]


def memory_row(model: str, found: dict[str, Costs]) -> list[str]:
    """MB that a fit adds."""
    names = ("Pyro", *_OURS, "NumPyro")
    return [model, *(cost(found, name, lambda c: c["memory"]) for name in names)]


def cost(found: dict[str, Costs], name: str, of: Callable[[Costs], float]) -> str:
    """A number of a contender; a dash if it did not run."""
    return number(of(found[name]) if name in found else math.nan)


def main() -> None:
    """Print the tables."""
    parser = harness.arguments(__doc__, list(PROBLEMS))
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    harness.use_one_thread()
    if options.run:
        contender, model, steps = options.run
        print(json.dumps(measure(contender, model, int(steps), options.device)))
        return
    with_numpyro = harness.has_numpyro(options.device)
    num_steps = NUM_STEPS // 10 if options.quick else NUM_STEPS
    found = {m: compare(m, num_steps, options.device, with_numpyro) for m in options.models}
    tables = [
        table(
            "Compiling",
            [
                "model",
                *(f"{name}, s" for name in (*_OURS, "NumPyro")),
                *(f"pays back: {name}" for name in _OURS),
            ],
            [compile_row(model, costs) for model, costs in found.items()],
            f"{harness.machine(options.device)} One thread. A compiled fit, compilers included. "
            "Cold is with an empty cache, new with one that has seen another model, warm with one "
            "that has seen this one. Pays back: the steps after which a compiled fit has overtaken "
            "one of Pyro's Trace_ELBO.",
        ),
        table(
            f"A fit of {num_steps} steps, compiling included",
            [
                "model",
                *(f"{name}, s" for name in ("Pyro", *_OURS, "NumPyro")),
                *(f"{name} / NumPyro" for name in _OURS),
            ],
            [fit_row(model, costs, num_steps) for model, costs in found.items()],
            f"Pyro's time is that of {EAGER_STEPS} steps, multiplied; the VAE's step is that of a "
            f"fit of {SHORT['VAE']}.",
        ),
        table(
            "Memory, MB",
            ["model", "Pyro", *(f"fit, {name}" for name in _OURS), "NumPyro"],
            [memory_row(model, costs) for model, costs in found.items()],
            "What a fit adds to the largest resident size of its process, imports not counted.",
        ),
    ]
    for text in tables:
        harness.publish(text, options.out)


if __name__ == "__main__":
    main()
