"""Reference posteriors that others have drawn."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from xarray import DataTree

from pyro_elbo_lab.inference.trees.convert import to_datatree

__all__ = ["posteriordb"]


def posteriordb(name: str, path: str | Path) -> DataTree:
    """Reference draws of a posterior in a copy of posteriordb.

    Each chain of the database is a chain here, and scalars such as `theta[1]`, ..., `theta[8]` are
    the variable `theta` again; its entries count from 0. Its dimensions have ArviZ's default names:
    `compare` matches them with those of an approximation by position. Take variables whose names
    differ from the program's sites by hand: `tree["posterior"] = tree["posterior"].rename(...)`.

    It takes the package `posteriordb`: `pip install "pyro_elbo_lab[posteriordb]"`.

    Args:
        name: of the posterior, such as "eight_schools-eight_schools_noncentered".
        path: of the folder `posterior_database` in a clone of posteriordb, which has the folders
            `posteriors`, `models`, `data` and `reference_posteriors`.

    Returns:
        A tree with the group `posterior`, in float64. Attributes of the root: `source`, where the
        draws are from; `sampler`, what drew them; `reliable` (1 or 0), whether they passed all
        checks that the database made of them; and `reliability`, a sentence that says so.

    Raises:
        ImportError: the package `posteriordb` is not installed.
        FileNotFoundError: the folder is not a posterior database.
        ValueError: the database has no such posterior, or no draws of it; chains of different
            parameters or lengths; a vector with missing or repeated entries.

    References:
        Magnusson, Torgander, Bürkner, Zhang, Carpenter and Vehtari (2025), posteriordb: testing,
        benchmarking and developing Bayesian inference algorithms, AISTATS.

    Example:
        >>> tree = posteriordb(  # doctest: +SKIP
        ...     "eight_schools-eight_schools_noncentered", "posteriordb/posterior_database"
        ... )
        >>> dict(tree["posterior"].sizes)  # doctest: +SKIP
        {'chain': 10, 'draw': 1000, 'theta_dim_0': 8}
    """
    entry = _entry(name, path)
    if entry.posterior_info.get("reference_posterior_name") is None:
        raise ValueError(
            f"posteriordb has no reference draws of '{name}', only its model and data."
        )
    info = entry.reference_draws_info()
    return to_datatree(
        _vectors(_stacked(entry.reference_draws(), name), name),
        dims={},
        attrs={
            "source": f"posteriordb, reference draws '{info['name']}', from {path}",
            "sampler": str(info.get("inference", {}).get("method", "unknown")),
            **_reliability(info.get("checks_made") or {}),
        },
    )


def _entry(name: str, path: str | Path) -> Any:
    """The package's own `Posterior`."""
    try:
        from posteriordb import PosteriorDatabase
    except ImportError as error:
        raise ImportError(
            "Reading posteriordb takes the package of that name: "
            'pip install "pyro_elbo_lab[posteriordb]", or pip install posteriordb.'
        ) from error
    if not (Path(path) / "posteriors").is_dir():
        raise FileNotFoundError(
            f"'{path}' is not a posterior database: it has no folder 'posteriors'. Give the path "
            "of the folder 'posterior_database' in a clone of https://github.com/stan-dev/posteriordb."
        )
    database = PosteriorDatabase(str(path))
    known = database.posterior_names()
    if name not in known:
        close = difflib.get_close_matches(name, known)
        raise ValueError(
            f"The posterior database in '{path}' has no '{name}' among its {len(known)} posteriors"
            + (f"; close to it are {close}." if close else ".")
        )
    return database.posterior(name)


def _stacked(chains: list[dict[str, list[float]]], name: str) -> dict[str, np.ndarray]:
    """Draws of every scalar, (chain, draw)."""
    shapes = [{scalar: len(draws) for scalar, draws in chain.items()} for chain in chains]
    if not chains or not shapes[0] or any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"The reference draws of '{name}' should be chains of the same parameters and lengths, "
            f"but by parameter the chains have these numbers of draws: {shapes}."
        )
    return {
        scalar: np.array([chain[scalar] for chain in chains], dtype=np.float64)
        for scalar in chains[0]
    }


def _vectors(scalars: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Scalars such as `x[2,1]` gathered to arrays, (chain, draw, ...), that count from 0."""
    entries: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    for scalar, draws in scalars.items():
        variable, index = _parsed(scalar)
        entries.setdefault(variable, {})[index] = draws
    return {
        variable: _vector(f"{variable}' of '{name}", found) for variable, found in entries.items()
    }


def _parsed(scalar: str) -> tuple[str, tuple[int, ...]]:
    """The variable, and the index that counts from 1."""
    match = re.fullmatch(r"(.+?)\[(\d+(?:,\s*\d+)*)\]", scalar)
    if match is None:
        return scalar, ()
    return match[1], tuple(int(part) for part in match[2].split(","))


def _vector(what: str, entries: Mapping[tuple[int, ...], np.ndarray]) -> np.ndarray:
    ndims = {len(index) for index in entries}
    shape = tuple(max(axis) for axis in zip(*entries, strict=False))
    if len(ndims) > 1 or set(entries) != {tuple(i + 1 for i in j) for j in np.ndindex(shape)}:
        raise ValueError(
            f"The entries of '{what}' do not fill an array: they are {sorted(entries)}, "
            "and indices should count from 1 without gaps."
        )
    draws = next(iter(entries.values()))
    result = np.stack([entries[tuple(i + 1 for i in index)] for index in np.ndindex(shape)], -1)
    return result.reshape(*draws.shape, *shape)


def _reliability(checks: Mapping[str, bool]) -> dict[str, int | str]:
    failed = [check for check, passed in checks.items() if not passed]
    if failed:
        sentence = f"not reliable: posteriordb's own checks failed: {', '.join(failed)}."
    else:
        made = ", ".join(checks) or "none are stated"
        sentence = f"reliable: they passed posteriordb's own checks ({made})."
    return {"reliable": int(not failed), "reliability": sentence}
