"""What the page of a report says, section by section."""

import datetime
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from pyro_elbo_lab.figures import theme
from pyro_elbo_lab.figures.evidence import Sandwich
from pyro_elbo_lab.report.page import markup, tables
from pyro_elbo_lab.report.page.health import health
from pyro_elbo_lab.report.page.illustrations import Illustration
from pyro_elbo_lab.report.page.markup import Cell, Section
from pyro_elbo_lab.report.page.numbers import number, plain
from pyro_elbo_lab.report.page.tables import Column
from pyro_elbo_lab.trust.comparison.compare import Comparison

_PACKAGES = ("pyro_elbo_lab", "pyro-ppl", "torch", "nutpie", "arviz", "xarray", "numpy")
_TONES = {
    "good": "good",
    "good marginals": "fair",
    "good after importance weighting": "fair",
    "cannot tell": "unknown",
    "point estimate": "unknown",
    "reference unreliable": "unknown",
}

_ANSWERS = {
    "good": "can be trusted",
    "fair": "can be trusted with care",
    "bad": "cannot be trusted",
    "unknown": "cannot be judged",
}


def title(info: Mapping[str, Any]) -> str:
    """What the page is called: by its question."""
    question = "can these approximations be trusted?"
    return f"{info['model']}: {question}" if "model" in info else question.capitalize()


def lede(comparison: Comparison) -> str:
    """The answer in two sentences: how many can be trusted, and what the reference is worth."""
    tones = Counter(_tone(found.kind) for found in comparison.findings.values())
    counted = ", ".join(f"{tones[tone]} {words}" for tone, words in _ANSWERS.items() if tones[tone])
    names = _plural(tones.total(), "approximation")
    parameters = _plural(comparison.dataset.sizes["parameter"], "parameter")
    answer = f"{names} of {parameters}: {counted}."
    note = comparison.reference_note
    if comparison.reference_reliable:
        verb = " is" if note.startswith("reliable") else ":"
        return markup.paragraph(f"{answer} The reference{verb} {note}", "lede")
    return markup.paragraph(answer, "lede") + markup.paragraph(
        f"The reference cannot be relied on, so nothing on this page can be concluded: {note}",
        "warning",
    )


def _tone(kind: str) -> str:
    return _TONES.get(kind, "bad")


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def sections(
    comparison: Comparison,
    illustrations: Mapping[str, Illustration],
    evidence: Mapping[str, Sandwich],
    info: Mapping[str, Any],
    beside: list[str],
) -> Iterator[Section]:
    """All sections in their order; those with nothing to say are empty."""
    swatches = _swatches(comparison)
    summary = tables.rows_of(comparison.summary)

    def shown(*names: str) -> list[str]:
        return [_figure(illustrations[name]) for name in names if name in illustrations]

    def table(caption: str, columns: Sequence[Column]) -> str:
        return tables.summary(caption, columns, summary, swatches)

    def keyed(table: str, key: str) -> list[str]:
        return [table, markup.paragraph(key, "soft")] if table else []

    yield markup.section("Verdicts", markup.cards(_cards(comparison, summary, swatches)))
    yield markup.section(
        "Summary",
        *keyed(table("Worst numbers of each approximation", tables.SUMMARY), _SUMMARY_KEY),
    )
    yield markup.section("All parameters", *shown("errors"))
    yield markup.section("Marginals", *shown("forest", "densities"))
    joint = table("Distances between joint distributions", tables.JOINT)
    yield markup.section("Joint distribution", *shown("pairs"), *keyed(joint, _JOINT_KEY))
    yield markup.section("Importance weights", *shown("k-hat"))
    bounds = tables.evidence(evidence, swatches)
    yield markup.section("Evidence", *shown("evidence", "ladder"), *keyed(bounds, _EVIDENCE_KEY))
    yield markup.section("Calibration", *shown("calibration"))
    yield markup.section(
        "Parameter by parameter",
        markup.paragraph(_PARAMETERS_KEY, "soft"),
        *tables.parameters(comparison, swatches),
    )
    predictive = table("Prediction, beside the reference", tables.PREDICTIVE)
    yield markup.section("Prediction", *keyed(predictive, _PREDICTIVE_KEY))
    yield markup.section("Training", *shown("training"))
    yield markup.section("Reference", *_reference(comparison))
    yield markup.section("Cost", _cost(comparison, summary, swatches))
    yield markup.section("Not compared", *map(markup.paragraph, comparison.notes))
    yield markup.section("Files beside this page", markup.links(beside))
    yield markup.section("How to repeat this", markup.definitions(dict(info) | _environment()))


_SUMMARY_KEY = (
    "k-hat: shape of the tail of the importance weights, to be trusted up to the threshold beside "
    "it. ELBO and log evidence in nats ± standard error; the evidence is estimated only where "
    "k-hat allows it. Mean error and Wasserstein distance in reference sds and the correlation "
    "error, largest over all parameters; sd ratio: sd of the approximation over that of the "
    "reference."
)
_EVIDENCE_KEY = (
    "± standard error. A lower bound above an upper bound by more than their errors means that one "
    "of them is wrong. evidence.csv has all bounds, with the reasons to believe them or not."
)
_PARAMETERS_KEY = (
    "Mean error and Wasserstein distance in reference sds; sd ratio: the approximation's sd over "
    "the reference's; coverage: share of the reference inside the approximation's central 90 % "
    "interval; tail ratio: width of the central 98 % over that of the reference; correlation "
    "error: largest over the other parameters. ± Monte Carlo standard error. Bold: farther from "
    "agreement than three standard errors and than twice what two halves of the reference are from "
    "it (the noise floors in table.csv). A click on a header sorts."
)
_JOINT_KEY = (
    "Of at most 100 parameters and 1000 draws; in brackets what two samples of the same "
    "distribution exceed with probability 5 %. Sliced Wasserstein-2 in reference sds; MMD: maximum "
    "mean discrepancy; the accuracy of a classifier that tells draws of both sides apart is 0.5 "
    "if they do not differ and 1 if they do not overlap."
)
_PREDICTIVE_KEY = (
    "Expected log predictive density by leave-one-out cross-validation, in nats, less that of the "
    "reference: negative where the approximation predicts worse. Not to be trusted where a Pareto "
    "k exceeds 0.7."
)


def _cards(
    comparison: Comparison, summary: Mapping[str, Mapping[str, Any]], swatches: Mapping[str, str]
) -> Iterator[str]:
    for name, found in comparison.findings.items():
        row = summary[name]
        facts = {
            "k-hat": number(row["k_hat"]),
            "worst mean error": f"{number(row['max_abs_mean_error'])} sd",
            "sd ratios": f"{number(row['min_sd_ratio'])} to {number(row['max_sd_ratio'])}",
            "ELBO": f"{number(row['elbo'])} nats",
        }
        known = {what: text for what, text in facts.items() if "\N{EN DASH}" not in text}
        kind = found.kind[:1].upper() + found.kind[1:]
        rest = found.sentence.removeprefix(f"{kind}: ")
        tone = _tone(found.kind)
        yield markup.card(name, swatches[name], tone, kind, _sentence(rest), known)


def _swatches(comparison: Comparison) -> dict[str, str]:
    """Color, marker and line of each approximation, as in the figures."""
    styles = theme.styles(comparison.approximations)
    return {name: markup.swatch(**theme.drawn(style)) for name, style in styles.items()}


def _figure(illustration: Illustration) -> str:
    return markup.figure(
        illustration.svg, illustration.title, illustration.alt, illustration.caption
    )


def _reference(comparison: Comparison) -> Iterator[str]:
    yield markup.paragraph(_sentence(comparison.reference_note))
    tree = comparison.reference
    sizes = tree["posterior"].sizes
    entries = {"sampler": plain(tree.attrs["sampler"])} if "sampler" in tree.attrs else {}
    plural = "s" if sizes["chain"] > 1 else ""
    draws = f"{sizes['chain']} chain{plural} of {sizes['draw']:,}"
    yield markup.definitions(entries | {"draws": draws})
    rows = [
        [Cell(line.what, line.what), Cell(line.value, line.value), Cell(line.good, line.good)]
        for line in health(tree)
    ]
    yield markup.table("Health of the sampler", ["quantity", "value", "good if"], rows)


def _cost(
    comparison: Comparison, summary: Mapping[str, Mapping[str, Any]], swatches: Mapping[str, str]
) -> str:
    """A table of those that say what they cost, and of the reference."""
    keys = [column.key for column in tables.COST]
    attrs = comparison.dataset.attrs
    rows = dict(summary) | {"reference": {k: attrs.get(f"reference_{k}", np.nan) for k in keys}}
    known = {name: row for name, row in rows.items() if not all(np.isnan(row[k]) for k in keys)}
    return tables.summary("What it cost", tables.COST, known, swatches)


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


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
