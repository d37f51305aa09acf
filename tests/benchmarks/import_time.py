"""What a user waits for before anything is computed: imports, and the command line's answers.

Run from the project's root: python -m tests.benchmarks.import_time [--rounds N] [--out FILE]

Each line is a process of its own; they take turns, and the table has medians. The bytecode is
compiled beforehand.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.harness import machine, publish, table

PROGRAMS = {
    "python": "import sys",
    "import pyro": "import pyro",
    "import pyro_elbo_lab": "import pyro, pyro_elbo_lab",
    "first loss": "import pyro; from pyro_elbo_lab import StandardELBO; StandardELBO()",
    "elbo-lab --version": "from pyro_elbo_lab.cli.main import main; main(['--version'])",
    "elbo-lab --help": "from pyro_elbo_lab.cli.main import main; main(['--help'])",
}
BEYOND = {
    "python": "",
    "import pyro": "python",
    "import pyro_elbo_lab": "import pyro",
    "first loss": "import pyro",
    "elbo-lab --version": "python",
    "elbo-lab --help": "python",
}


def seconds(program: str) -> float:
    """Wall time of one process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a file to add the table to")
    options = parser.parse_args()
    for program in PROGRAMS.values():
        seconds(program)
    times = np.array(
        [[seconds(program) for program in PROGRAMS.values()] for _ in range(options.rounds)]
    )
    medians = dict(zip(PROGRAMS, np.median(times, 0), strict=True))
    rows = [
        [name, f"{x:.2f}", f"{x - medians[BEYOND[name]]:.2f}" if BEYOND[name] else "-"]
        for name, x in medians.items()
    ]
    note = f"{machine()} Medians of {options.rounds} processes in turn."
    header = ["process", "s", "beyond Python, or `import pyro`"]
    publish(table("Seconds until it is there", header, rows, note), options.out)


if __name__ == "__main__":
    main()
