"""Proof that the laws can fail: deliberate faults, each of which a test has to notice.

    python -m tests.mutants                 # all of them, some minutes
    python -m tests.mutants --jobs 2
    python -m tests.mutants --only jackknife

One fault at a time is put into a copy of the package, and the tests that ought to notice are run on
the copy. A fault that survives means that a test is missing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from tests.mutants.faults import FAULTS, Mutant
from tests.mutants.faults_of_trust import FAULTS_OF_TRUST

ROOT = Path(__file__).parents[2]
CRASHES = ("NameError", "UnboundLocalError", "AttributeError", "TypeError", "ImportError")
MUTANTS = [*FAULTS, *FAULTS_OF_TRUST]
COPIED = ("pyro_elbo_lab", "tests", "models", "conftest.py", "pyproject.toml")


def text(mutant: Mutant, folder: Path = ROOT) -> str:
    """The module with the fault.

    Raises:
        ValueError: what it replaces does not stand there exactly once.
    """
    source = (folder / "pyro_elbo_lab" / f"{mutant.file}.py").read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        raise ValueError(
            f"Mutant '{mutant.name}': {mutant.old!r} stands {source.count(mutant.old)} times in "
            f"{mutant.file}.py, expected once. Bring it up to date."
        )
    return source.replace(mutant.old, mutant.new)


def run_tests(mutant: Mutant | None, tests: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Run tests on a copy of the project, with the fault if there is one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for item in COPIED:
            copy = shutil.copytree if (ROOT / item).is_dir() else shutil.copy
            copy(ROOT / item, folder / item)
        if mutant:
            (folder / "pyro_elbo_lab" / f"{mutant.file}.py").write_text(
                text(mutant), encoding="utf-8"
            )
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": name, "OMP_NUM_THREADS": "1", "COLUMNS": "500"},
            capture_output=True,
            text=True,
            check=False,
        )


def is_caught(mutant: Mutant) -> tuple[bool, str]:
    """Whether a test fails on the fault, and which.

    Raises:
        RuntimeError: pytest did not run the tests, or the fault is no Python that runs.
    """
    started = time.perf_counter()
    result = run_tests(mutant, mutant.tests)
    seconds = time.perf_counter() - started
    if result.returncode not in (0, 1):
        raise RuntimeError(f"Mutant '{mutant.name}': pytest failed.\n{result.stdout[-2000:]}")
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    first = failed[0].removeprefix("FAILED ") if failed else "nothing"
    by, _, why = first.partition(" - ")
    if why.startswith(CRASHES):
        raise RuntimeError(f"Mutant '{mutant.name}' crashes, which proves nothing: {why}")
    return result.returncode == 1, f"{mutant.name}: noticed by {by} ({seconds:.0f} s)"


def main() -> int:
    """Returns the number of faults that nothing noticed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    arguments = parser.parse_args()
    mutants = [m for m in MUTANTS if arguments.only in m.name]
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    print(f"{len(tests)} tests must pass without a fault")
    clean = run_tests(None, tests)
    if clean.returncode != 0:
        print(clean.stdout[-3000:])
        return 1
    survivors = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for caught, line in tqdm(pool.map(is_caught, mutants), total=len(mutants)):
            survivors += not caught
            tqdm.write(("" if caught else "SURVIVED ") + line)
    print(f"{len(mutants) - survivors} of {len(mutants)} faults are noticed")
    return survivors
