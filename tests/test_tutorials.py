"""Every notebook runs from a fresh kernel, and is committed with the outputs a reader sees."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[1] / "tutorials"
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
