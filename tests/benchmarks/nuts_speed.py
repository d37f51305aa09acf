"""NUTS, 4 chains of 1000 + 1000: ours, NumPyro's and Pyro's.

Run from the project's root: python -m tests.benchmarks.nuts_speed [--quick] [--out FILE]

Each sampler has a process of its own, and all cores. The first run includes compiling (ours with an
empty cache folder), the second is a second call in the same process; imports are not timed.
"""

import argparse
import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import arviz_stats
import numpy as np

from pyro_elbo_lab import nuts
from pyro_elbo_lab.inference.nuts.chains import TARGET_ACCEPT
from pyro_elbo_lab.inference.nuts.nuts import judge
from tests.benchmarks import harness
from tests.benchmarks.harness import in_process, number, say, table
from tests.benchmarks.problems import PROBLEMS

MODELS = ["eight schools", "logistic", "radon"]
CHAINS = 4
NUM_DRAWS = 1000
CHAIN_METHODS = ("vectorized", "sequential", "parallel", "parallel, float64")
PYRO_DRAWS = 100

CLEAR_SECONDS = 0.5
"""Runs get longer until they take this much longer, more than compiling varies by."""

Draws = Mapping[str, np.ndarray]
Sampler = Callable[[int], tuple[Draws, float]]
"""From the number of draws, before and after the end of warm-up, to these and the seconds that were
spent on judging them."""


class Run(NamedTuple):
    """What a sampler did: seconds of a first run, of a second run and of its sampling alone, and
    the draws (chain, draw) by scalar."""

    first: float
    second: float
    sampling: float
    draws: Draws


def by_nuts(model: str, sampler: str, num_chains: int) -> Sampler:
    """Ours, or Pyro's by way of ours."""
    problem = PROBLEMS[model]

    def run(num_draws: int) -> tuple[Draws, float]:
        tree = nuts(
            problem.model,
            *problem.data(),
            num_chains=num_chains,
            num_warmup=num_draws,
            num_samples=num_draws,
            sampler=sampler,
            progress=False,
        )
        draws = {str(name): array.values for name, array in tree["posterior"].data_vars.items()}
        started = time.perf_counter()
        judge(draws, tree["sample_stats"]["diverging"].to_numpy())
        return draws, time.perf_counter() - started

    return run


def by_numpyro(model: str, way: str) -> Sampler:
    """NumPyro's, with the target acceptance of ours; one of `CHAIN_METHODS`."""
    import numpyro

    chain_method, _, dtype = way.partition(", ")
    if chain_method == "parallel":
        numpyro.set_host_device_count(CHAINS)
    numpyro.enable_x64(dtype == "float64")
    import jax
    from numpyro.infer import MCMC, NUTS

    from tests.benchmarks.numpyro_models import MODELS

    args = (x.double() if x.is_floating_point() else x for x in PROBLEMS[model].data())
    data = tuple(jax.numpy.asarray(x.numpy()) for x in args)

    def run(num_draws: int) -> tuple[Draws, float]:
        mcmc = MCMC(
            NUTS(MODELS[model], target_accept_prob=TARGET_ACCEPT),
            num_warmup=num_draws,
            num_samples=num_draws,
            num_chains=CHAINS,
            chain_method=chain_method,
            progress_bar=False,
        )
        mcmc.run(jax.random.key(0), *data)
        samples = mcmc.get_samples(group_by_chain=True)
        return {name: np.asarray(x, np.float64) for name, x in samples.items()}, 0.0

    return run


def measure(sampler: str, model: str, num_draws: int, path: Path) -> dict[str, float]:
    """Run a sampler in this process, and leave its draws in a file.

    The time of sampling alone is the slope of the time in the number of draws, with all compilers'
    caches warm, less what ours takes to judge its draws.
    """
    run = {
        "ours": lambda: by_nuts(model, "nutpie", CHAINS),
        "Pyro": lambda: by_nuts(model, "pyro", 1),
    }.get(sampler, lambda: by_numpyro(model, sampler))()

    def seconds(size: int) -> tuple[float, float, Draws]:
        started = time.perf_counter()
        draws, judging = run(size)
        everything = time.perf_counter() - started - judging
        return everything, everything - judging, draws

    first, _, draws = seconds(num_draws)
    np.savez(path, **draws)  # type: ignore[arg-type]
    if sampler == "Pyro":
        return {"first": first, "second": first, "sampling": first}
    second, _, _ = seconds(num_draws)
    if sampler != "ours":
        _keep_what_jax_compiles(path.parent)

    def warm(size: int) -> float:
        return min(seconds(size)[1] for _ in range(3))

    short, multiple = warm(num_draws), 8
    while (gained := warm(multiple * num_draws) - short) < CLEAR_SECONDS and multiple < 64:
        multiple *= 2
    return {"first": first, "second": second, "sampling": gained / (multiple - 1)}


def _keep_what_jax_compiles(folder: Path) -> None:
    """NumPyro compiles in every run, unless JAX keeps the results in a folder."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def sample(sampler: str, model: str, num_draws: int) -> Run:
    """Run a sampler in a process of its own, with an empty cache."""
    say(f"{model}: {sampler}")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/draws.npz"
        options = ["--run", sampler, model, str(num_draws), path]
        seconds = in_process("nuts_speed", *options, TORCHINDUCTOR_CACHE_DIR=f"{folder}/cache")
        with np.load(path) as arrays:
            draws = {
                f"{name}{list(index)}": x[(..., *index)]
                for name, x in arrays.items()
                for index in np.ndindex(x.shape[2:])
            }
    return Run(**seconds, draws=draws)


def least_ess(draws: Draws) -> float:
    """The least bulk ESS of all scalars."""
    return min(float(arviz_stats.ess(x, method="bulk")) for x in draws.values())


def largest_z(a: Draws, b: Draws) -> float:
    """The largest difference of two posterior means, in its Monte Carlo standard errors."""
    return max(abs(a[n].mean() - b[n].mean()) / np.hypot(_mcse(a[n]), _mcse(b[n])) for n in a)


def _mcse(x: np.ndarray) -> float:
    return float(x.std(ddof=1) / arviz_stats.ess(x, method="mean") ** 0.5)


def compare(model: str, num_draws: int, with_numpyro: bool) -> list[list[str]]:
    """A row of the table for each sampler."""
    our = sample("ours", model, num_draws)
    rows = [[model, "ours", *_figures(our, least_ess(our.draws)), "-"]]
    best = math.nan
    for method in CHAIN_METHODS if with_numpyro else ():
        their = sample(method, model, num_draws)
        ess = least_ess(their.draws)
        best = ess if math.isnan(best) else max(best, ess)
        z = number(largest_z(our.draws, their.draws), 2)
        rows.append([model, f"NumPyro, {method}", *_figures(their, ess), z])
    short = min(num_draws, PYRO_DRAWS)
    seconds = sample("Pyro", model, short).first * CHAINS * num_draws / short
    rows.append(
        [model, "Pyro (extrapolated)", *_figures(Run(seconds, seconds, seconds, {}), best), "-"]
    )
    return rows


def _figures(run: Run, ess: float) -> list[str]:
    times = [run.first, run.second, run.sampling]
    return [number(x) for x in (*times, ess, ess / run.first, ess / run.sampling)]


def main() -> None:
    """Print the table."""
    parser = harness.arguments(__doc__, MODELS)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        sampler, model, size, path = options.run
        warnings.simplefilter("ignore")
        print(json.dumps(measure(sampler, model, int(size), Path(path))))
        return
    size = 200 if options.quick else NUM_DRAWS
    with_numpyro = harness.has_numpyro("cpu")
    rows = [row for model in options.models for row in compare(model, size, with_numpyro)]
    header = [
        "model",
        "sampler",
        "first run, s",
        "second run, s",
        "sampling, s",
        "min-ESS",
        "min-ESS/s, first run",
        "min-ESS/s, sampling",
        "largest \\|z\\|",
    ]
    note = (
        f"{harness.machine()} {CHAINS} chains of {size} + {size}, target acceptance "
        f"{TARGET_ACCEPT}, all cores. Ours samples in float64, NumPyro in float32 by default. The "
        "first run compiles, with an empty cache; NumPyro compiles again in the second. Sampling: "
        "the slope of the time in the number of draws, caches warm, judging of draws left out. "
        "min-ESS: the least bulk ESS of all scalars. z: differences of posterior means from ours "
        "in their Monte Carlo standard errors. Pyro's time is that of one chain of "
        f"{PYRO_DRAWS} + {PYRO_DRAWS}, multiplied; its ESS is taken to be NumPyro's best, the "
        "algorithm being the same."
    )
    harness.publish(table("NUTS", header, rows, note), options.out)


if __name__ == "__main__":
    main()
