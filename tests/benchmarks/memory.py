"""Does memory stay? The resident size of one process after many fits of three models.

Run from the project's root: python -m tests.benchmarks.memory [--fits N] [--only KIND] [--nuts N]

Each fit has a new guide and new data, and nothing of it is kept. The kinds take turns: eager steps,
a captured graph without a compiler, and whole compiled steps. The models do too: eight schools; a
regression on a design matrix of 16 MB; a latent of its own for each of a thousand rows. Before the
size is read, garbage is collected and free memory returned to the system.
"""

import argparse
import contextlib
import ctypes
import gc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from models import eight_schools
from pyro_elbo_lab import StandardELBO, compiled, fit, nuts
from tests.benchmarks.harness import say, table
from tests.benchmarks.problems import per_row

Program = Callable[..., Any]

_SETTLED = 10
"""Fits, or runs, after which libraries have loaded and filled what they keep."""


def regression(x: Tensor, y: Tensor) -> None:
    """A Gaussian likelihood, on covariates (rows, 10)."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(10), 1.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


MODELS: dict[str, tuple[Program, Callable[[], tuple[Any, ...]]]] = {
    "eight schools": (eight_schools.model, eight_schools.data),
    "regression": (regression, lambda: (torch.randn(400_000, 10), torch.randn(400_000))),
    "per row": (per_row, lambda: (torch.randn(1000),)),
}


def _fit(model: Program, args: tuple, kind: str) -> None:
    pyro.clear_param_store()
    objective = StandardELBO()
    fit(
        model,
        AutoNormal(model),
        *args,
        objective=compiled(objective, backend="graph") if kind == "graph" else objective,
        num_steps=10,
        compile=kind == "compiled",
        progress=False,
    )


def _nuts(model: Program, args: tuple, kind: str) -> None:
    nuts(model, *args, num_chains=2, num_warmup=20, num_samples=20, progress=False)


def resident() -> float:
    """MB that the process holds, once what is free has been returned."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


def sizes(run: Callable[..., None], times: int, kinds: list[str], models: list[str]) -> list[float]:
    """MB after each run, models and kinds taking turns."""
    found = []
    for i in range(times):
        model, data = MODELS[models[i % len(models)]]
        run(model, data(), kinds[i // len(models) % len(kinds)])
        found.append(resident())
        if i + 1 in _milestones(times):
            say(f"{i + 1}: {found[-1]:.0f} MB")
    return found


def growth(found: list[float]) -> float:
    """MB a run from the tenth on, by least squares; NaN for fewer than three."""
    rest = found[_SETTLED - 1 :]
    return float(np.polyfit(np.arange(len(rest)), rest, 1)[0]) if len(rest) > 2 else float("nan")


def _milestones(times: int) -> Iterator[int]:
    yield from (n for n in (10, 50, *range(100, times, 100)) if n < times)
    yield times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ["eager", "graph", "compiled"]
    parser.add_argument("--fits", type=int, default=300, help="how many (default: 300)")
    parser.add_argument("--nuts", type=int, default=0, help="runs of NUTS afterwards (default: 0)")
    parser.add_argument("--only", choices=kinds, help="one kind of fit")
    parser.add_argument("--model", choices=list(MODELS), help="one model")
    options = parser.parse_args()
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    models = [options.model] if options.model else list(MODELS)
    of_fits = [options.only] if options.only else kinds
    say(f"before: {resident():.0f} MB")
    for what, run, times in (("fits", _fit, options.fits), ("runs of NUTS", _nuts, options.nuts)):
        if times < 1:
            continue
        # NUTS on the large regression takes minutes.
        chosen = models if what == "fits" or options.model else ["eight schools"]
        found = sizes(run, times, of_fits, chosen)
        rows = [[f"{n}", f"{found[n - 1]:.0f}"] for n in _milestones(times)]
        print(table(f"Resident after {what}", [what, "MB"], rows))
        print(f"growth: {growth(found):.3f} MB each, from the tenth on\n", flush=True)


if __name__ == "__main__":
    main()
