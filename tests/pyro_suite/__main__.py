"""Pyro's own tests with our objectives in place of `Trace_ELBO`, `TraceMeanField_ELBO` and
`TraceEnum_ELBO`.

    python -m tests.pyro_suite /path/to/pyro                       # all of tests/infer, hours
    python -m tests.pyro_suite /path/to/pyro test_valid_models.py autoguide
    python -m tests.pyro_suite /path/to/pyro -k iplate --seconds 60

The argument is a checkout of Pyro, of which nothing is changed and nothing kept. A test counts if
it makes one of these losses. What fails with ours is run again with Pyro's, to tell what fails
anyway.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider"]
PYTEST += ["-p", "pyro_suite_plugin"]
FAILED = ("refused", "numbers", "shapes", "took", "other", "slow")
HEADINGS = {
    "passed": "passed",
    "words": "raised as Pyro does, in other words",
    "refused": "refused that Pyro takes",
    "shapes": "refused that Pyro takes: an assertion of the program fails",
    "numbers": "failed for numbers",
    "took": "taken that Pyro refuses",
    "other": "failed outside of the package",
    "slow": "too slow",
    "anyway": "fails with Pyro's own classes too",
    "skipped": "skipped by Pyro",
    "deselected": "deselected",
}

Record = dict[str, Any]


def run(checkout: Path, tests: Iterable[str], options: Iterable[str], **env: str) -> list[Record]:
    """Run tests of Pyro on a copy, away from the package `pyro` of the checkout.

    Args:
        checkout: of Pyro.
        tests: files, folders or single tests, from the root of the checkout.
        options: of pytest.
        env: for the plugin.

    Raises:
        RuntimeError: pytest did not run.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(checkout / "tests", folder / "tests")
        shutil.copy(checkout / "setup.cfg", folder)
        shutil.copy(ROOT / "tests" / "pyro_suite" / "pyro_suite_plugin.py", folder)
        records = folder / "records"
        records.touch()
        result = subprocess.run(
            [*PYTEST, *options, *tests],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([name, str(ROOT)]),
                "PYRO_SUITE_RECORDS": str(records),
                "OMP_NUM_THREADS": "1",
                **env,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode not in (0, 1):
            raise RuntimeError(f"pytest failed:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
        return [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]


def report(records: list[Record]) -> str:
    """Counts by file, class and outcome, and each test that is not as Pyro's."""
    lines = []
    counts = Counter((_file(r), ", ".join(r["classes"]) or "-", r["kind"]) for r in records)
    for (file, classes, kind), number in sorted(counts.items()):
        lines.append(f"{number:5}  {file:40} {classes:35} {HEADINGS[kind]}")
    for kind in (*FAILED, "anyway", "words", "deselected"):
        rows = [r for r in records if r["kind"] == kind]
        if rows:
            lines.append(f"\n{HEADINGS[kind]}: {len(rows)}")
            lines += [f"  {r['test']}\n      {_first_line(r['why'])}" for r in rows]
    total = Counter(r["kind"] for r in records)
    lines.append("\n" + ", ".join(f"{HEADINGS[k]}: {total[k]}" for k in HEADINGS if total[k]))
    return "\n".join(lines)


def _file(record: Record) -> str:
    return record["test"].partition("::")[0].removeprefix("tests/infer/")


def _first_line(text: str) -> str:
    return " ".join(text.split())[:300]


def main() -> int:
    """Returns the number of tests that are refused though Pyro takes them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("files", nargs="*", help="in tests/infer; all of it by default")
    parser.add_argument("-k", default="", help="as of pytest")
    parser.add_argument("--seconds", type=int, default=120, help="the longest a test may take")
    arguments = parser.parse_args()
    tests = [f"tests/infer/{file}" for file in arguments.files] or ["tests/infer"]
    options = ["-k", arguments.k] if arguments.k else []
    env = {"PYRO_SUITE_SECONDS": str(arguments.seconds)}
    records = run(arguments.checkout, tests, options, **env)
    failed = [r for r in records if r["kind"] in FAILED]
    if failed:
        names = [r["test"] for r in failed]
        again = run(arguments.checkout, names, [], PYRO_SUITE_CLASSES="pyro", **env)
        theirs = {r["test"] for r in again if r["kind"] == "passed"}
        for row in failed:
            row["kind"] = row["kind"] if row["test"] in theirs else "anyway"
    print(report(records))
    return sum(r["kind"] in ("refused", "shapes") for r in records)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
