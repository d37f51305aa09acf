"""Every notebook runs from a fresh kernel, and is committed with the outputs a reader sees."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[2] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), (
        "commit the notebook as run from top to bottom"
    )
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": TUTORIALS}}).execute()


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


def cells(name: str, kind: str) -> list[str]:
    notebook = nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


TRANSLATED = [path.stem for path in NOTEBOOKS if path.stem.endswith("_zh")]


@pytest.mark.parametrize("name", TRANSLATED)
def test_a_translation_has_the_same_code_and_formulas(name: str) -> None:
    original = name.removesuffix("_zh")
    assert cells(name, "code") == cells(original, "code")
    texts = zip(cells(name, "markdown"), cells(original, "markdown"), strict=True)
    for translated, english in texts:
        assert translated.count("$$") == english.count("$$")
        assert translated.count("\n#") == english.count("\n#")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_is_longer_than_a_screen(path: Path) -> None:
    lines = {source: len(source.splitlines()) for source in cells(path.stem, "code")}
    assert {source: count for source, count in lines.items() if count > 30} == {}
