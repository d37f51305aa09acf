"""What the benchmarks share: bursts of steps in turn, ratios with their spread, tables, processes.

Times on a shared machine drift by more than most differences of interest. So contenders take turns,
a short burst each, and are compared by the ratios within each round.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LEAST_STEPS = 20
MOST_SECONDS = 0.5
"""Slower contenders take fewer steps in a burst than that."""


class Contender(NamedTuple):
    """One way to take steps; `run(n)` takes n of them and returns when they are done, or takes more
    and returns how many."""

    name: str
    run: Callable[[int], Any]


def use_one_thread() -> None:
    """Give torch one thread, and JAX too if it is not imported yet."""
    import torch

    torch.set_num_threads(1)
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def interleaved(
    contenders: Sequence[Contender], rounds: int, seconds: float = 0.05
) -> dict[str, np.ndarray]:
    """Time contenders in turn.

    Args:
        contenders: each is first run twice, to compile and to learn how long its steps take.
        rounds: in each, every contender has one burst; who begins changes from round to round.
        seconds: what a burst should last; slow contenders take at least 20 steps, or half a second.

    Returns:
        Microseconds a step by name, (rounds,).
    """
    sizes = [_burst_size(contender, seconds) for contender in contenders]
    times = np.empty((len(contenders), rounds))
    for i in range(rounds):
        for j in (*range(i % len(sizes), len(sizes)), *range(i % len(sizes))):
            times[j, i] = timed(contenders[j], sizes[j])
    return {contender.name: 1e6 * row for contender, row in zip(contenders, times, strict=True)}


def timed(contender: Contender, steps: int) -> float:
    """Seconds a step of a burst; says on stderr if it took more than one thread."""
    wall, cpu = time.perf_counter(), time.process_time()
    steps = contender.run(steps) or steps
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if cpu > 1.2 * wall + 0.01:
        say(f"  {contender.name} ran on {cpu / wall:.1f} threads")
    return wall / steps


def _burst_size(contender: Contender, seconds: float) -> int:
    contender.run(LEAST_STEPS)
    each = timed(contender, LEAST_STEPS)
    steps = max(math.ceil(seconds / each), min(LEAST_STEPS, math.ceil(MOST_SECONDS / each)))
    contender.run(steps)
    return steps


def spread(values: np.ndarray, digits: int = 3) -> str:
    """The median and the quartiles.

    >>> spread(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    '3 (2-4)'
    """
    low, middle, high = (number(q, digits) for q in np.percentile(values, [25, 50, 75]))
    return f"{middle} ({low}-{high})"


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, and no exponent.

    >>> number(0.01234), number(12.34), number(12345.6)
    ('0.0123', '12.3', '12300')
    """
    if not math.isfinite(value):
        return "-"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:.{digits}g}"


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "") -> str:
    """A Markdown table.

    >>> print(table("Speed", ["model", "µs"], [["radon", 12]], "On one core."))
    ### Speed
    <BLANKLINE>
    | model | µs |
    |---|---|
    | radon | 12 |
    <BLANKLINE>
    On one core.
    <BLANKLINE>
    """
    lines = [f"### {title}", "", _row(header), "|---" * len(header) + "|"]
    lines += [_row(row) for row in rows]
    return "\n".join([*lines, "", *([note, ""] if note else [])])


def _row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def machine(device: str = "cpu") -> str:
    """The date, the machine and the versions, in a sentence each."""
    processor = _processor() if device == "cpu" else f"{_gpu()} beside {_processor()}"
    packages = ("torch", "pyro-ppl", "nutpie", "jax", "numpyro")
    versions = [f"{name} {_version(name)}" for name in packages]
    return (
        f"{date.today():%d %B %Y}. {processor}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}; {', '.join(versions)}."
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "a CPU")


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name()


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def in_process(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run a module of the benchmarks in a process of its own.

    Args:
        module: its name within `tests.benchmarks`.
        arguments: of its command line.
        environment: variables in addition to those of this process.

    Returns:
        The JSON object in the last line of its output.

    Raises:
        RuntimeError: it failed; with the last line of its complaints.
    """
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        complaint = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"{' '.join(arguments)}: {complaint[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def arguments(description: str | None, models: Sequence[str]) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=models, default=list(models))
    parser.add_argument("--quick", action="store_true", help="less of everything, to see it run")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="a file to add the tables to")
    return parser


def publish(text: str, out: Path | None) -> None:
    """Print a table, and add it to the file."""
    print(text, flush=True)
    if out:
        with out.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


def has_numpyro(device: str) -> bool:
    """Whether NumPyro is there and runs on this device; says so if not."""
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        import jax
        import numpyro  # noqa: F401
    except ImportError:
        say("NumPyro is left out: it is not installed (pyro_elbo_lab[bench])")
        return False
    if device == "cuda" and jax.default_backend() != "gpu":
        say("NumPyro is left out: JAX has no GPU")
        return False
    return True
