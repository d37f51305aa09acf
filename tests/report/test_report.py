"""The report: complete, self-contained, and either there as a whole or not at all."""

import json
import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pyro_elbo_lab.report import write
from pyro_elbo_lab.report.write import check_destination, write_report
from pyro_elbo_lab.trust.comparison.compare import Comparison, compare
from tests.support.planted import normal, standard_normal, tree

VOID = {"meta", "img", "br"}
FIGURES = ("errors", "forest", "densities", "pairs", "k-hat", "training")


class Page(HTMLParser):
    """Checks that tags nest, and collects attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    trees = {"normal, IW:16": normal(1, scale=0.4), "Normal / iw 16": normal(2)}
    reference = standard_normal(
        0,
        reliable=1,
        reliability="R-hat is at most 1.003.",
        sampler="nutpie",
        r_hat_max=1.0031,
        ess_min=1234.5,
        divergences=0,
    )
    return compare(trees, reference)


@pytest.fixture(scope="module")
def folder(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parent") / "new" / "report"
    losses = {name: np.linspace(50, 30, 200) for name in comparison.approximations}
    info = {"model": "toy", "command": "elbo-lab compare toy.py", "seed": 7}
    assert write_report(comparison, path, losses=losses, info=info) == path / "index.html"
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def test_every_file_is_there(folder: Path) -> None:
    figures = {f"{name}.{kind}" for name in FIGURES for kind in FORMATS}
    draws = {"reference.nc", "normal-iw-16.nc", "normal-iw-16-2.nc", "comparison.nc"}
    assert {file.name for file in folder.iterdir()} == figures | draws | {
        "index.html",
        "table.csv",
        "summary.csv",
    }
    assert [file.name for file in folder.parent.iterdir()] == ["report"]


FORMATS = {"svg": b"<?xml", "png": b"\x89PNG"}


@pytest.mark.parametrize("kind", FORMATS)
def test_figures_are_of_their_format(folder: Path, kind: str) -> None:
    for file in folder.glob(f"*.{kind}"):
        assert file.read_bytes().startswith(FORMATS[kind])


def test_draws_survive(folder: Path, comparison: Comparison) -> None:
    with xr.open_datatree(folder / "reference.nc", engine="h5netcdf") as tree:
        xr.testing.assert_equal(tree["posterior"].load(), comparison.reference["posterior"])
        assert tree.attrs["reliability"] == "R-hat is at most 1.003."
    with xr.open_datatree(folder / "normal-iw-16-2.nc", engine="h5netcdf") as tree:
        xr.testing.assert_equal(tree.load(), comparison.approximations["Normal / iw 16"])


def test_page_is_self_contained(page: Page, folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(|<link", text)
    assert all("src" not in script for script in page.all("script"))
    assert len(page.all("img")) == len(FIGURES)
    for image in page.all("img"):
        assert (image["src"] or "").startswith("data:image/svg+xml;base64,")
        assert len(image["alt"] or "") > 20
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    for link in page.all("a"):
        target = link["href"] or ""
        assert target.removeprefix("#") in ids if target[0] == "#" else (folder / target).is_file()


def test_page_says_it_all_verdicts_first(page: Page, comparison: Comparison) -> None:
    headings = [attrs["id"] for attrs in page.all("h2")]
    assert headings[:2] == ["verdicts", "summary"] and headings[-1] == "how-to-repeat-this"
    assert {"marginals", "joint-distribution", "training", "reference"} <= set(headings)
    for found in comparison.findings.values():
        beginning, rest = found.sentence.split(": ", 1)
        assert beginning.lower() == found.kind
        assert beginning in page.text
        assert rest[1:] in page.text  # which starts with a capital
    for label in comparison.table.loc["normal, IW:16"].index:
        assert label in page.text
    for fact in ("1.003", "1,234", "nutpie", "elbo-lab compare toy.py", "torch", "Python 3"):
        assert fact in page.text
    assert page.all("html")[0]["lang"] == "en"


def test_the_answer_comes_first(page: Page, comparison: Comparison) -> None:
    kinds = [found.kind for found in comparison.findings.values()]
    assert kinds == ["under-dispersed", "good"]
    answer = "2 approximations of 3 parameters: 1 can be trusted, 1 cannot be trusted."
    assert page.text.index(answer) < page.text.index("Verdicts")


def test_an_unreliable_reference_is_a_warning_on_top(tmp_path: Path) -> None:
    reference = standard_normal(0, reliable=0, reliability="4 divergences.")
    page = Page(write_report(compare({"q": normal(1)}, reference), tmp_path / "r").read_text())
    warning = "cannot be relied on, so nothing on this page can be concluded: 4 divergences."
    assert page.text.index(warning) < page.text.index("Summary\n")
    assert "1 cannot be judged" in page.text


def table_of(html: str, caption: str) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """Header, and text and sort key of each cell, of a table of the page."""
    (content,) = re.findall(rf"<caption>{caption}</caption>(.*?)</table>", html, re.DOTALL)
    header = [strip(cell) for cell in re.findall(r"<th scope=\"col\".*?>(.*?)</th>", content)]
    rows = re.findall(r"<tr>(.*?)</tr>", content.split("<tbody>")[1], re.DOTALL)
    cells = [re.findall(r'data-sort="(.*?)">(.*?)</t[hd]>', row, re.DOTALL) for row in rows]
    return header, [[(strip(text), key) for key, text in row] for row in cells]


def strip(html: str) -> str:
    return re.sub("<.*?>", "", html)


def test_tables_hold_the_numbers_of_the_comparison(folder: Path, comparison: Comparison) -> None:
    html = (folder / "index.html").read_text(encoding="utf-8")
    header, rows = table_of(html, "Parameters, farthest first")
    assert header[:3] == ["parameter", "approximation", "mean error"]
    table = comparison.table
    assert len(rows) == len(table)
    for (parameter, _), (name, _), (_, error), (ratio, _), (_, distance), *_ in rows:
        row = table.loc[(name, parameter)]
        assert float(error) == pytest.approx(row["mean_error"], rel=1e-6)
        assert float(distance) == pytest.approx(row["wasserstein"], rel=1e-6)
        assert ratio.startswith(f"{row['sd_ratio']:.2f} ± ")
    distances = [float(row[4][1]) for row in rows]
    assert distances == sorted(distances, reverse=True)
    header, rows = table_of(html, "Worst numbers of each approximation")
    k_hats = [float(row[header.index("k-hat")][1]) for row in rows]
    assert k_hats == pytest.approx(comparison.summary["k_hat"].tolist(), rel=1e-6)


def test_what_noise_does_not_explain_is_bold(folder: Path, comparison: Comparison) -> None:
    html = (folder / "index.html").read_text(encoding="utf-8")
    bold = {float(text) for text in re.findall(r"<b>(\d\.\d\d)</b>", html)}
    ratios = comparison.table["sd_ratio"].round(2)
    assert set(ratios.loc["normal, IW:16"]) <= bold  # 0.4, planted
    assert not set(ratios.loc["Normal / iw 16"]) & bold  # 1


def test_sampler_health_is_shown_as_far_as_known(tmp_path: Path) -> None:
    reference = standard_normal(0)
    shape = (4, 1000)
    rng = np.random.default_rng(0)
    stats = {
        "diverging": np.arange(4000).reshape(shape) < 7,
        "energy": rng.normal(size=shape),
        "tree_depth": np.full(shape, 3),
        "step_size": np.broadcast_to([[0.5], [0.25], [0.125], [0.75]], shape),
    }
    dims = ("chain", "draw")
    reference["sample_stats"] = xr.Dataset({name: (dims, x) for name, x in stats.items()})
    html = write_report(compare({"q": normal(1)}, reference), tmp_path / "r").read_text("utf-8")
    _, rows = table_of(html, "Health of the sampler")
    found = {what: value for (what, _), (value, _), _ in rows}
    # Independent energies e have E (e' - e)² / var e = 2.
    assert float(found.pop("smallest E-BFMI of a chain")) == pytest.approx(2.0, abs=0.2)
    assert found == {
        "divergent transitions": "7 of 4,000",
        "tree depth": "mean 3.0, largest 3",
        "step size by chain": "0.125 to 0.75",
    }


def sandwich(low: float, high: float) -> Any:
    table = pd.DataFrame({"name": ["ELBO", "EUBO"], "value": [low, high]})
    lower, upper = SimpleNamespace(value=low, se=0.1), SimpleNamespace(value=high, se=0.2)
    return SimpleNamespace(lower=lower, upper=upper, table=table, plot=lambda: plt.subplots()[0])


def test_evidence_and_calibration_have_sections(tmp_path: Path) -> None:
    bounds = {"wide": sandwich(-9.0, -1.0), "tight": sandwich(-3.5, -2.25)}
    calibration, axes = plt.subplots()
    axes.plot([0, 1])
    calibration.suptitle("Ranks")
    comparison = compare({"wide": normal(1), "tight": normal(2)}, standard_normal(0))
    html = write_report(comparison, tmp_path, evidence=bounds, calibration=calibration).read_text()
    header, rows = table_of(html, "Best believable bounds of the log evidence, in nats")
    assert header == ["approximation", "lower bound", "upper bound", "width"]
    texts = [text.replace("\N{MINUS SIGN}", "-") for text, _ in rows[1]]
    assert texts == ["tight", "-3.50 ± 0.10", "-2.25 ± 0.20", "1.25"]
    assert "From tight, the tightest." in html
    assert (tmp_path / "ladder.svg").exists()
    assert {"evidence", "calibration"} <= {attrs["id"] for attrs in Page(html).all("h2")}
    written = pd.read_csv(tmp_path / "evidence.csv")
    assert written["approximation"].tolist() == ["wide", "wide", "tight", "tight"]
    assert written["value"].tolist() == [-9.0, -1.0, -3.5, -2.25]
    assert not plt.fignum_exists(calibration.number)


def test_sections_without_numbers_are_left_out(tmp_path: Path) -> None:
    one = np.random.default_rng(0).normal(size=(2, 300))
    comparison = compare({"q": tree(one)}, tree(one[:, ::-1]))
    page = Page(write_report(comparison, tmp_path / "r").read_text("utf-8"))
    headings = re.findall(r'href="#([a-z-]+)"', (tmp_path / "r" / "index.html").read_text())
    assert "verdicts" in headings and "marginals" in headings
    assert not {"importance-weights", "prediction", "cost", "training"} & set(headings)
    assert len(page.all("img")) == 3  # neither pairs nor k-hat nor training


def test_names_are_escaped(tmp_path: Path) -> None:
    comparison = compare({"<b>&": normal(1)}, standard_normal(0, reliable=1, reliability="1 < 2"))
    html = write_report(comparison, tmp_path / "r", info={"a<b": "<i>"}).read_text("utf-8")
    assert {"<b>&", "1 < 2", "a<b", "<i>"} <= set(
        re.findall(r"<b>&|1 < 2|a<b|<i>", Page(html).text)
    )
    assert "<i>" not in html


def test_long_tables_are_cut_and_say_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def many(chains: int) -> xr.DataTree:
        draws = rng.normal(size=(chains, 100, 150))
        return xr.DataTree.from_dict(
            {"posterior": xr.Dataset({"x": (("chain", "draw", "i"), draws)})}
        )

    page = Page(write_report(compare({"q": many(1)}, many(2)), tmp_path / "r").read_text("utf-8"))
    assert "the 120 of 150 farthest from the reference; table.csv has all." in page.text
    assert len((tmp_path / "r" / "table.csv").read_text().splitlines()) == 151


def test_an_earlier_report_is_replaced(comparison: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "report"
    write_report(compare({"old": normal(3)}, standard_normal(0)), path)
    assert (path / "old.nc").exists()
    write_report(comparison, path)
    assert not (path / "old.nc").exists() and (path / "normal-iw-16.nc").exists()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_things_as_they_were(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(write, "_write_figures", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(comparison, tmp_path / "report")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    write_report(comparison, tmp_path / "report")
    before = {f.name: f.read_bytes() for f in (tmp_path / "report").iterdir()}
    monkeypatch.setattr(write, "_write_figures", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(comparison, tmp_path / "report")
    assert {f.name: f.read_bytes() for f in (tmp_path / "report").iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize("name", ["notes.txt", "index.html", "data/x.nc"])
def test_other_peoples_files_are_not_overwritten(
    comparison: Comparison, tmp_path: Path, name: str
) -> None:
    precious = tmp_path / name
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("precious")
    with pytest.raises(FileExistsError, match="holds more than an earlier report"):
        write_report(comparison, tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        write_report(comparison, precious)
    assert precious.read_text() == "precious"


def test_files_that_are_not_of_the_report_stay(comparison: Comparison, tmp_path: Path) -> None:
    write_report(compare({"old": normal(3)}, standard_normal(0)), tmp_path)  # an empty folder
    precious = ["notes.txt", "data.csv", "notes.html", "figure.png", "sub/x.nc", ".hidden"]
    for name in precious:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("precious")
    write_report(comparison, tmp_path)
    assert {(tmp_path / name).read_text() for name in precious} == {"precious"}
    assert not (tmp_path / "old.nc").exists()


def test_draws_do_not_take_the_place_of_a_file(tmp_path: Path) -> None:
    """Neither of one that is not ours, nor of one that was changed since."""
    one, two = ({name: normal(seed)} for seed, name in ((1, "a"), (2, "b")))
    write_report(compare(one, standard_normal(0)), tmp_path)
    for name in ("a.nc", "B.nc"):
        (tmp_path / name).write_text("precious")
    write_report(compare(one | two, standard_normal(0)), tmp_path)
    assert {(tmp_path / name).read_text() for name in ("a.nc", "B.nc")} == {"precious"}
    assert (tmp_path / "a-2.nc").exists() and (tmp_path / "b-2.nc").exists()
    write_report(compare(one | two, standard_normal(0)), tmp_path)
    assert not (tmp_path / "a-3.nc").exists()


@pytest.mark.parametrize("name", ["index.html", "table.csv", "errors.svg"])
def test_changed_files_are_not_overwritten(
    name: str, comparison: Comparison, tmp_path: Path
) -> None:
    write_report(comparison, tmp_path)
    with (tmp_path / name).open("a") as file:
        file.write("precious")
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    for attempt in (check_destination, lambda path: write_report(comparison, path)):
        with pytest.raises(FileExistsError, match=f"{re.escape(name)} that .* was changed"):
            attempt(tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_a_file_in_the_way_of_a_new_figure_stays(tmp_path: Path) -> None:
    comparison = compare({"wide": normal(1)}, standard_normal(0))
    write_report(comparison, tmp_path)
    (tmp_path / "evidence.csv").write_text("precious")
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=r"evidence\.csv that is not of an earlier report"):
        write_report(comparison, tmp_path, evidence={"wide": sandwich(-9.0, -1.0)})
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_approximations_that_differ_in_a_sign_have_files_of_their_own(tmp_path: Path) -> None:
    names = ["a.b", "a-b", "A-B", "a b", "../a", "/", ".", "", "\N{GREEK SMALL LETTER MU}" * 99]
    long = "x" * 300
    trees = {name: normal(seed) for seed, name in enumerate([*names, long, long + "y"])}
    write_report(compare(trees, standard_normal(100)), tmp_path / "r")
    draws = list((tmp_path / "r").glob("*.nc"))
    assert len({path.name.lower() for path in draws}) == len(trees) + 2
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    html = (tmp_path / "r" / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{path.name}"' in html for path in draws)


def test_a_link_to_the_folder_stays(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):  # to a folder that is not there, and to one that is
        assert write_report(comparison, tmp_path / "link") == tmp_path / "link" / "index.html"
        assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "table.csv").exists()


def test_the_page_stays_a_page_with_its_list_of_files(folder: Path, page: Page) -> None:
    (listed,) = (attrs["content"] for attrs in page.all("meta") if attrs.get("name") == "files")
    assert set(json.loads(listed or "")) == {file.name for file in folder.iterdir()}
    assert (folder / "index.html").read_text().startswith("<!DOCTYPE html>")


WRITER = """
import sys, time
from pyro_elbo_lab.inference.storage import folders
with folders.filling(sys.argv[1]) as fresh:
    (fresh / "index.html").write_text("half")
    print(flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_what_a_killed_run_has_left_is_removed(comparison: Comparison, tmp_path: Path) -> None:
    report = tmp_path / "report"
    for number in (signal.SIGTERM, signal.SIGKILL):
        command = [sys.executable, "-c", WRITER, str(report)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        process.send_signal(number)
        process.wait(60)
        assert report.exists() == (number == signal.SIGKILL)
    assert len(list(report.iterdir())) == 1
    write_report(comparison, report)
    assert not [file.name for file in report.iterdir() if file.name.startswith(".")]
    assert list(tmp_path.iterdir()) == [report]
