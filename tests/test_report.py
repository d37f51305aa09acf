"""The report: complete, self-contained, and either there as a whole or not at all."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pyro_elbo_lab import report
from pyro_elbo_lab.comparison import Comparison, compare
from pyro_elbo_lab.report import write_report
from tests.planted import normal, standard_normal

VOID = {"meta", "img", "br"}


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
        if self.open and self.open[-1] != "style":
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
    figures = {f"{name}.{kind}" for name in ("forest", "densities", "training") for kind in FORMATS}
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
    assert not re.search(r"https?:|<script|@import|url\(", text)
    assert len(page.all("img")) == 3
    for image in page.all("img"):
        assert (image["src"] or "").startswith("data:image/svg+xml;base64,")
        assert len(image["alt"] or "") > 20
    for link in page.all("a"):
        assert (folder / (link["href"] or "")).is_file()


def test_page_says_it_all_verdicts_first(page: Page, comparison: Comparison) -> None:
    headings = re.findall(
        "Verdicts|Summary|Intervals|Densities|Parameters|Training|Reference|How to", page.text
    )
    assert headings[0] == "Verdicts" and {"Summary", "Reference", "How to"} <= set(headings)
    for sentence in comparison.verdicts.values():
        assert sentence in page.text
    for label in comparison.table.loc["normal, IW:16"].index:
        assert label in page.text
    for fact in ("1.003", "1234", "nutpie", "elbo-lab compare toy.py", "torch", "Python 3"):
        assert fact in page.text
    assert page.all("html")[0]["lang"] == "en"


def test_names_are_escaped(tmp_path: Path) -> None:
    comparison = compare({"<b>&": normal(1)}, standard_normal(0, reliable=1, reliability="1 < 2"))
    html = write_report(comparison, tmp_path / "r", info={"a<b": "<i>"}).read_text("utf-8")
    assert {"<b>&", "1 < 2", "a<b", "<i>"} <= set(
        re.findall(r"<b>&|1 < 2|a<b|<i>", Page(html).text)
    )
    assert "<i>" not in html


def test_long_tables_are_cut_and_say_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def tree(chains: int) -> xr.DataTree:
        draws = rng.normal(size=(chains, 100, 150))
        return xr.DataTree.from_dict(
            {"posterior": xr.Dataset({"x": (("chain", "draw", "i"), draws)})}
        )

    page = Page(write_report(compare({"q": tree(1)}, tree(2)), tmp_path / "r").read_text("utf-8"))
    assert "The 100 of 150 farthest from the reference; table.csv has all." in page.text
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

    monkeypatch.setattr(report, "_write_figures", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(comparison, tmp_path / "report")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    write_report(comparison, tmp_path / "report")
    before = {f.name: f.read_bytes() for f in (tmp_path / "report").iterdir()}
    monkeypatch.setattr(report, "_write_figures", fail)
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


def test_a_report_with_a_foreign_file_is_not_overwritten(
    comparison: Comparison, tmp_path: Path
) -> None:
    write_report(comparison, tmp_path)  # an empty folder will do
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        write_report(comparison, tmp_path)
