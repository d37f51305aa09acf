"""What the page of a report says, section by section."""

import datetime
import platform
from collections.abc import Iterator, Mapping
from html import escape
from importlib import metadata
from typing import Any

import numpy as np

from pyro_elbo_lab import _page
from pyro_elbo_lab.comparison import Comparison

_MOST_ROWS = 100
_PACKAGES = ("pyro_elbo_lab", "pyro-ppl", "torch", "nutpie", "arviz", "xarray", "numpy")
_TONES = {
    "good": "good",
    "good marginals": "fair",
    "good after importance weighting": "fair",
    "cannot tell": "unknown",
    "point estimate": "unknown",
    "reference unreliable": "unknown",
}


def sections(
    comparison: Comparison, figures: Mapping[str, bytes], info: dict[str, Any], beside: list[str]
) -> Iterator[str]:
    yield _page.section("Verdicts", *_verdicts(comparison))
    yield _page.section("Summary", _summary(comparison), _page.paragraph(_SUMMARY_KEY, soft=True))
    yield _page.section("Intervals", _page.figure(figures["forest"], *_FOREST))
    yield _page.section("Densities", _page.figure(figures["densities"], *_DENSITIES))
    yield _page.section("Parameters", _page.paragraph(_TABLE_KEY, soft=True), *_tables(comparison))
    if "training" in figures:
        yield _page.section("Training", _page.figure(figures["training"], *_TRAINING))
    yield _page.section("Reference", *_reference(comparison))
    yield _page.section("Not compared", *map(_page.paragraph, comparison.notes))
    yield _page.section("Files beside this page", _page.links(beside))
    yield _page.section("How to repeat this", _page.definitions(info | _environment()))


def _verdicts(comparison: Comparison) -> Iterator[str]:
    for name, found in comparison.findings.items():
        tone = _TONES.get(found.kind, "bad")
        yield _page.verdict(name, found.kind, tone, found.sentence)


_SUMMARY_KEY = (
    "k-hat: shape of the tail of the importance weights, trustworthy up to the threshold beside "
    "it. ELBO and log evidence in nats ± standard error; the evidence is estimated only where "
    "k-hat allows it. Mean error and Wasserstein distance in reference sds, largest over all "
    "parameters; sd ratio: sd of the approximation over that of the reference."
)
_TABLE_KEY = (
    "Mean error and Wasserstein distance are in reference sds; the sd ratio is the approximation's "
    "sd over the reference's; coverage is the share of the reference inside the approximation's "
    "central 90 % interval. ± is the Monte Carlo standard error. In brackets, the noise floor: how "
    "far two halves of the reference are from agreement. Bold: farther from agreement than the "
    "floor and three standard errors, or than twice the floor where there is no standard error."
)
_FOREST = (
    "Interval plot: for each parameter the reference on top and the approximations below it.",
    "Dot: median; thick line: 50 % interval; thin line: 90 % interval. The grey bands carry the "
    "reference's intervals down. Each parameter is shifted and scaled by the reference.",
)
_DENSITIES = (
    "Density plots: for each parameter the approximations as lines over the reference in grey.",
    "Kernel density estimates of the draws, in each parameter's own units.",
)
_TRAINING = (
    "Line plot of the objective against the training step, one line for each approximation.",
    "A curve that still climbs at the end needs more steps. Objectives of different kinds are "
    "different bounds, so compare curves of one kind only.",
)


def _summary(comparison: Comparison) -> str:
    header = (
        "approximation",
        "k-hat",
        "ELBO",
        "log evidence",
        "mean error",
        "sd ratio",
        "Wasserstein",
    )
    rows = [
        (
            escape(str(name)),
            _k_hat(row["k_hat"], row["k_hat_threshold"]),
            _with_error(row["elbo"], row["elbo_se"]),
            _with_error(row["log_evidence"], row["log_evidence_se"]),
            _number(row["max_abs_mean_error"]),
            f"{_number(row['min_sd_ratio'])} to {_number(row['max_sd_ratio'])}",
            _number(row["max_wasserstein"]),
        )
        for name, row in comparison.summary.iterrows()
    ]
    return _page.table("Summary of the approximations", header, rows)


def _tables(comparison: Comparison) -> Iterator[str]:
    table = comparison.table
    header = ("parameter", "mean error", "sd ratio", "Wasserstein", "90 % coverage")
    for name in comparison.approximations:
        rows = table.loc[name]
        yield f"<h3>{escape(name)}</h3>"
        if len(rows) > _MOST_ROWS:
            what = (
                f"The {_MOST_ROWS} of {len(rows)} farthest from the reference; table.csv has all."
            )
            yield _page.paragraph(what, soft=True)
            rows = rows.nlargest(_MOST_ROWS, "wasserstein")
        cells = [(escape(str(label)), *_cells(row)) for label, row in rows.iterrows()]
        yield _page.table(f"Parameters of {name}", header, cells)


def _cells(row: Mapping[str, float]) -> Iterator[str]:
    """The four distances of a row of the table, bold where noise does not explain them."""
    for column, agreement in (("mean_error", 0.0), ("sd_ratio", 1.0)):
        mcse, floor = row[f"{column}_mcse"], row[f"{column}_floor"]
        text = _number(row[column], signed=column == "mean_error")
        bold = abs(row[column] - agreement) > max(floor, 3 * mcse)
        yield f"{_bold(text, bold)} <small>± {_number(mcse)} ({_number(floor)})</small>"
    for column, agreement in (("wasserstein", 0.0), ("coverage", 0.9)):
        floor = row[f"{column}_floor"]
        bold = abs(row[column] - agreement) > 2 * floor
        yield f"{_bold(_number(row[column]), bold)} <small>({_number(floor)})</small>"


def _bold(text: str, bold: bool) -> str:
    return f"<b>{text}</b>" if bold else text


def _reference(comparison: Comparison) -> Iterator[str]:
    note = comparison.reference_note
    yield _page.paragraph(note[:1].upper() + note[1:])
    attrs = comparison.reference.attrs
    names = {"sampler": "sampler", "r_hat_max": "largest R-hat", "ess_min": "smallest ESS"}
    names |= {"divergences": "divergences", "seconds": "seconds"}
    shown = {label: _plain(attrs[key]) for key, label in names.items() if key in attrs}
    sizes = comparison.reference["posterior"].sizes
    shown["draws"] = f"{sizes['chain']} chains of {sizes['draw']}"
    yield _page.definitions(shown)


def _environment() -> dict[str, str]:
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _number(value: float, signed: bool = False) -> str:
    """Two decimals in HTML; an en dash where there is no number."""
    if np.isnan(value):
        return "\N{EN DASH}"
    if np.isinf(value):
        return "\N{INFINITY}" if value > 0 else "\N{MINUS SIGN}\N{INFINITY}"
    rounded = round(value, 2) + 0.0  # no minus before zero
    return f"{rounded:{'+' if signed and rounded else ''}.2f}".replace("-", "\N{MINUS SIGN}")


def _k_hat(value: float, threshold: float) -> str:
    return _number(value) + ("" if np.isnan(value) else f" <small>({_number(threshold)})</small>")


def _with_error(value: float, error: float) -> str:
    return _number(value) + ("" if np.isnan(value) else f" <small>± {_number(error)}</small>")


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
