"""What compiling costs: seconds cold and warm, whole fits, steps to pay it back, memory.

Run from the project's root: python -m tests.benchmarks.compile_cost [--quick] [--out FILE]

Every fit has a process of its own, on one thread (the compilers may use all cores). Cold is the
first one with an empty cache folder, as on a machine that has never compiled anything; warm is the
next one with that folder. Imports are not timed. One particle, plain ELBO.
"""

import argparse
import json
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


def measure(contender: str, model: str, num_steps: int, device: str) -> dict[str, float]:
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


def compare(model: str, num_steps: int, device: str, with_numpyro: bool) -> tuple[list, list]:
    """A row of the table of seconds, and one of the table of memory."""

    def run(contender: str, steps: int, **environment: str) -> dict[str, Any]:
        say(f"{model}: {contender}, {steps} steps")
        options = ["--run", contender, model, str(steps), "--device", device]
        return in_process("compile_cost", *options, **environment)

    taken = min(num_steps, SHORT.get(model, num_steps))
    with tempfile.TemporaryDirectory() as folder:
        cold = run("ours", taken, TORCHINDUCTOR_CACHE_DIR=folder)
        warm = run("ours", taken, TORCHINDUCTOR_CACHE_DIR=folder)
    eager = run("Pyro", min(num_steps, EAGER_STEPS))
    theirs = run("NumPyro", taken) if with_numpyro else None
    wall = {
        name: found["compiling"] + num_steps * found["step"]
        for name, found in {"cold": cold, "warm": warm, "eager": eager, "theirs": theirs}.items()
        if found
    }
    saved = eager["step"] - warm["step"]
    seconds: list[Any] = [
        model,
        number(cold["compiling"]),
        number(warm["compiling"]),
        number(theirs["compiling"]) if theirs else "-",
        *(number(wall[name]) for name in ("cold", "warm", "eager")),
        number(wall["theirs"]) if theirs else "-",
        *(number(wall[n] / wall["theirs"]) if theirs else "-" for n in ("cold", "warm")),
        *(number(found["compiling"] / saved) for found in (cold, warm)),
    ]
    runs = [eager, cold, warm, theirs]
    memory = [
        f"{number(r['peak'])} ({number(r['peak'] - r['before'])})" if r else "-" for r in runs
    ]
    return seconds, [model, *memory]


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
    rows = [compare(model, num_steps, options.device, with_numpyro) for model in options.models]
    header = [
        "model",
        "compile: cold",
        "warm",
        "NumPyro",
        f"{num_steps} steps: cold",
        "warm",
        "Pyro, eager",
        "NumPyro",
        "cold / NumPyro",
        "warm / NumPyro",
        "pays back after: cold",
        "warm",
    ]
    note = (
        f"{harness.machine()} Device {options.device}, one thread. Seconds to compile, seconds of "
        "a whole fit with its compiling, and the steps after which compiling has paid against "
        f"Pyro's Trace_ELBO. Pyro's time is that of {EAGER_STEPS} steps multiplied, "
        f"the VAE's that of {SHORT['VAE']}."
    )
    seconds = table("What compiling costs, seconds", header, [row for row, _ in rows], note)
    header = ["model", "Pyro, eager", "compiled fit, cold", "warm", "NumPyro"]
    note = "What a fit adds to the largest resident size of its process, imports not counted."
    memory = table("Memory, MB", header, [row for _, row in rows], note)
    harness.publish(seconds, options.out)
    harness.publish(memory, options.out)


if __name__ == "__main__":
    main()
