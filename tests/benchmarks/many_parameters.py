"""Time and memory of comparing many parameters: `python -m tests.benchmarks.many_parameters`.

Both sides are written to netCDF files and read back block by block, so that they never are in
memory as a whole.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import h5netcdf
import numpy as np
import xarray as xr

from pyro_elbo_lab.trust.comparison.compare import Comparison, compare

_AT_ONCE = 50  # draws that are in memory while the files are written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--draws", type=int, default=1000, help="in each of four chains")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.nc" for name in ("approximation", "reference")]
        for seed, path in enumerate(paths):
            write(path, options.parameters, options.draws, seed)
        started, busy, before = time.perf_counter(), time.process_time(), peak()
        comparison = compare_files(*paths)
        seconds, after = time.perf_counter() - started, peak()
        busy = time.process_time() - busy
    print(f"{options.parameters} parameters, 4 chains of {options.draws} draws on both sides")
    print(f"{seconds:.0f} s, of which the processor was busy {busy:.0f} s")
    print(f"at most {after:.2f} GB of memory, {before:.2f} GB of them before it began")
    print(comparison.verdicts["approximation"])


def write(path: Path, num_parameters: int, num_draws: int, seed: int) -> None:
    """Write normal draws of `x`, a piece of them at a time."""
    rng = np.random.default_rng(seed)
    dims = {"chain": 4, "draw": num_draws, "i": num_parameters}
    with h5netcdf.File(path, "w") as file:
        file.dimensions = dims
        posterior = file.create_group("posterior")
        x = posterior.create_variable("x", ("chain", "draw", "i"), np.float64)
        for chain in range(4):
            for start in range(0, num_draws, _AT_ONCE):
                stop = min(start + _AT_ONCE, num_draws)
                x[chain, start:stop] = rng.normal(size=(stop - start, num_parameters))


def compare_files(approximation: Path, reference: Path) -> Comparison:
    with (
        xr.open_datatree(approximation, engine="h5netcdf") as ours,
        xr.open_datatree(reference, engine="h5netcdf") as theirs,
    ):
        return compare({"approximation": ours}, theirs)


def peak() -> float:
    """The most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
