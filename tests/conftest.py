"""Fixtures shared by the tests."""

from pathlib import Path

import pytest
import torch

collect_ignore = ["benchmarks/numpyro_models.py"]  # imports NumPyro, which may not be there

LONGEST_FILES = ("test_tutorials", "test_model_files")
"""They come first, so that no worker is still busy with one when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST_FILES)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device present")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device the test has to hold on; CUDA is skipped where there is none."""
    return torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Every dtype the test has to hold in."""
    return request.param


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference posteriors and data sets beside the project, if there is one."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the data folder ../shared is not present")
    return folder
