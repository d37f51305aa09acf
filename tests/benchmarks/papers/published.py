"""What the scripts share: options, and tables with the paper's side beside ours."""

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks import harness

DEVICES = ("cpu", "cuda")


class Setting(NamedTuple):
    """A setting of the paper's experiment and of ours."""

    name: str
    paper: Any
    ours: Any


class Result(NamedTuple):
    """A published number and ours.

    Attributes:
        name: what was measured.
        published: the number in the paper, and its standard error, 0 where it has none.
        ours: our number, and its standard error, 0 where it has none.
        note: the reason for a difference, or how it was obtained.
        digits: after the point.
    """

    name: str
    published: tuple[float, float]
    ours: tuple[float, float]
    note: str = ""
    digits: int = 2

    @property
    def difference(self) -> float:
        """Ours minus theirs."""
        return self.ours[0] - self.published[0]

    def cells(self) -> list[str]:
        """Of its row."""
        theirs, ours = (with_error(*pair, self.digits) for pair in (self.published, self.ours))
        return [self.name, theirs, ours, f"{self.difference:+.{self.digits}f}", self.note]


def with_error(value: float, se: float, digits: int) -> str:
    """A number and its standard error.

    >>> with_error(1.234, 0.1, 2), with_error(1.234, 0.0, 1)
    ('1.23 ± 0.10', '1.2')
    """
    return f"{value:.{digits}f} ± {se:.{digits}f}" if se else f"{value:.{digits}f}"


def results_table(title: str, results: Iterable[Result], note: str = "") -> str:
    """Published, ours, difference and its reason."""
    header = ["", "published", "ours", "ours - published", "note"]
    return harness.table(title, header, [result.cells() for result in results], note)


def settings_table(settings: Iterable[Setting]) -> str:
    """Settings, the paper's beside ours."""
    return harness.table("Settings", ["", "paper", "ours"], settings)


def arguments(
    description: str | None, data: str | None = None, devices: tuple[str, ...] = ("cpu",)
) -> argparse.ArgumentParser:
    """The options that all scripts have.

    Args:
        description: the script's docstring.
        data: what `--data` is the path of, None where the script needs none.
        devices: where it runs.
    """
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    if data:
        parser.add_argument("--data", type=Path, required=True, help=data)
    parser.add_argument("--quick", action="store_true", help="seconds, to see it run")
    parser.add_argument("--device", default="cpu", choices=devices)
    parser.add_argument("--out", type=Path, help="a file to add the tables to")
    return parser


def report(
    options: argparse.Namespace,
    title: str,
    settings: Iterable[Setting],
    measure: Callable[[argparse.Namespace], Iterable[Result]],
    note: str = "",
) -> list[Result]:
    """Measure on one thread and publish the tables.

    Args:
        options: from the command line.
        title: of the table: what, and of which paper.
        settings: the paper's and ours.
        measure: yields the results, each as soon as it is there.
        note: under the table.
    """
    harness.use_one_thread()
    started = time.perf_counter()
    results = []
    for result in measure(options):
        harness.say("  ".join(result.cells()))
        results.append(result)
    took = f"{(time.perf_counter() - started) / 60:.1f} minutes."
    quick = "**Quick run: these numbers show only that it runs.** " if options.quick else ""
    footer = f"{quick}{note} {took} {harness.machine(options.device)}".strip()
    harness.publish(results_table(title, results, footer), options.out)
    harness.publish(settings_table(settings), options.out)
    return results
