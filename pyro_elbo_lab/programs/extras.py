"""Packages that only a part of this one needs."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["needing"]

_INSTALLED_AS = {
    "arviz": "arviz",
    "arviz_base": "arviz",
    "arviz_plots": "arviz",
    "arviz_stats": "arviz",
    "cloudpickle": "cloudpickle",
    "h5netcdf": "h5netcdf",
    "joblib": "joblib",
    "matplotlib": "matplotlib",
    "nutpie": "nutpie",
    "pandas": "pandas",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "xarray": "xarray",
}


@contextmanager
def needing(what: str) -> Iterator[None]:
    """Say what to install where a package is missing.

    Args:
        what: needs it.

    Raises:
        ModuleNotFoundError: with the command that installs the package.

    Example:
        >>> with needing("nuts"):
        ...     raise ModuleNotFoundError("No module named 'nutpie'", name="nutpie")
        Traceback (most recent call last):
        ...
        ModuleNotFoundError: nuts needs nutpie, which is not installed: pip install nutpie
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = _INSTALLED_AS.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        raise ModuleNotFoundError(
            f"{what} needs {package}, which is not installed: pip install {package}",
            name=error.name,
        ) from error
