"""The page in a real browser: nothing fails or is fetched, it fits a phone, and tables sort."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pyro_elbo_lab.report.write import write_report
from pyro_elbo_lab.trust.comparison.compare import compare

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no `chromium` on the PATH")

WIDTHS = (360, 800, 1400)
NAMES = ("mean-field", "normal, importance-weighted:16", "x" * 60)

# Put before everything else in a copy of the page: what goes wrong, and what is there at the end.
PROBE = """<script>
const wrong = [];
addEventListener("error", (event) => wrong.push(event.message || "not loaded"), true);
addEventListener("securitypolicyviolation", (event) => wrong.push(event.violatedDirective));
console.error = console.warn = (...words) => wrong.push(words.join(" "));
const keys = (table, column) => [...table.tBodies[0].rows].map((r) => r.cells[column].dataset.sort);
function sorted(table, column, clicks) {
  const header = table.tHead.rows[0].cells[column];
  const found = [];
  for (let i = 0; i < clicks; i++) {
    header.querySelector("button").click();
    found.push([header.getAttribute("aria-sort"), keys(table, column)]);
  }
  return found;
}
addEventListener("load", async () => {
  const root = document.documentElement;
  await Promise.all([...document.images].map((image) => image.decode()));
  const images = [...document.images].map((image) => [image.alt, image.naturalWidth]);
  const tables = [...document.querySelectorAll("table.sortable")];
  const boxes = [...document.querySelectorAll("section, li.card, header, p, figure, dl, h3")];
  const answer = {
    innerWidth, scrollWidth: root.scrollWidth, wrong, images,
    fetched: performance.getEntriesByType("resource").map((entry) => entry.name),
    beyond: boxes.filter((box) => box.getBoundingClientRect().right > innerWidth + 1)
      .map((box) => box.outerHTML.slice(0, 80)),
    unnamed: [...document.querySelectorAll("[role=region]")]
      .filter((region) => !region.getAttribute("aria-label")).length,
    buttons: [...document.querySelectorAll("thead button")]
      .map((button) => [button.textContent, button.tabIndex]),
    headers: document.querySelectorAll("table.sortable thead th").length,
    first: keys(tables.at(-1), 0),
    numbers: sorted(tables.find((t) => t.caption.textContent.startsWith("Parameters")), 4, 2),
    words: sorted(tables.find((t) => t.caption.textContent.startsWith("Parameters")), 0, 2),
    missing: sorted(tables[0], 1, 2),
  };
  parent.postMessage(JSON.stringify(answer), "*");
});
</script>"""
FRAME = """<!DOCTYPE html><body>
<script>addEventListener("message", (event) => document.body.dataset.answer = event.data);</script>
<iframe src="probed.html" width="{width}" height="900" style="border: 0"></iframe></body>"""


def tree(x: np.ndarray, log_weight: np.ndarray | None = None) -> xr.DataTree:
    posterior = xr.Dataset(
        {"theta": (("chain", "draw", "school"), x)},
        coords={"school": [f"Phillips Academy {i}" for i in range(x.shape[-1])]},
    )
    groups = {"posterior": posterior}
    if log_weight is not None:
        groups["sample_stats"] = xr.Dataset({"log_weight": (("chain", "draw"), log_weight)})
    return xr.DataTree.from_dict(groups)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three approximations of 12 parameters; the last has no k-hat."""
    rng = np.random.default_rng(0)
    trees = {
        name: tree(rng.normal(0.2 * i, 1, (1, 1000, 12)), rng.normal(size=(1, 1000)))
        for i, name in enumerate(NAMES[:2])
    }
    trees[NAMES[2]] = tree(rng.normal(size=(1, 1000, 12)))
    comparison = compare(trees, tree(rng.normal(size=(4, 250, 12))))
    info = {"model": "a_model_with_a_long_name", "command": "elbo-lab " + "--guide normal " * 20}
    path = tmp_path_factory.mktemp("browser") / "report"
    losses = {name: np.linspace(50, 30, 200) for name in NAMES}
    write_report(comparison, path, losses=losses, info=info)
    return path


def look(folder: Path, width: int) -> dict[str, Any]:
    """What the probe says of the page in a window of so many pixels.

    In a frame, as a window of Chromium cannot be narrower than 500 pixels.
    """
    html = (folder / "index.html").read_text(encoding="utf-8")
    (folder / "probed.html").write_text(html.replace("<style>", f"{PROBE}\n<style>", 1), "utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--window-size=1600,1000", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run(
        [*command, f"file://{folder / 'frame.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (answer,) = re.findall(r'data-answer="([^"]*)"', done.stdout)
    return json.loads(unescape(answer))


@pytest.fixture(scope="module", params=WIDTHS)
def found(folder: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    answer = look(folder, request.param)
    assert answer["innerWidth"] == request.param
    return answer


def test_nothing_fails_and_nothing_is_fetched(found: dict[str, Any]) -> None:
    assert found["wrong"] == []
    assert [name for name in found["fetched"] if not name.startswith("data:")] == []


def test_the_page_fits_its_window(found: dict[str, Any]) -> None:
    assert found["scrollWidth"] <= found["innerWidth"]
    assert found["beyond"] == []


def test_figures_are_drawn_and_named(found: dict[str, Any]) -> None:
    assert len(found["images"]) == 6
    for name, width in found["images"]:
        assert len(name) > 20
        assert width > 300
    assert found["unnamed"] == 0


def test_every_header_is_a_button_that_the_keyboard_reaches(found: dict[str, Any]) -> None:
    assert found["headers"] == len(found["buttons"]) > 10
    assert all(text and tab == 0 for text, tab in found["buttons"])


def test_numbers_sort_both_ways(found: dict[str, Any]) -> None:
    """The table comes sorted by the Wasserstein distance; a click turns it round."""
    (first, ascending), (second, descending) = found["numbers"]
    assert (first, second) == ("ascending", "descending")
    numbers = [float(key) for key in ascending]
    assert len(numbers) == 36 and numbers == sorted(numbers)
    assert [float(key) for key in descending] == sorted(numbers, reverse=True)


def test_words_sort_both_ways_and_numbers_in_them_count(found: dict[str, Any]) -> None:
    (first, ascending), (second, descending) = found["words"]
    assert (first, second) == ("ascending", "descending")
    indices = [int(re.findall(r"\d+", key)[0]) for key in ascending]
    assert indices == sorted(indices)  # 2 before 10
    assert descending == ascending[::-1]


def test_what_is_missing_stays_last(found: dict[str, Any]) -> None:
    (_, descending), (_, ascending) = found["missing"]
    assert len(descending) == 3
    assert descending[-1] == ascending[-1] == ""
    assert descending[0] == ascending[1]
