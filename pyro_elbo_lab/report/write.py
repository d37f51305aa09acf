"""A Comparison as a folder: one self-contained page, its figures, tables and draws."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from pyro_elbo_lab.figures.evidence import Sandwich
from pyro_elbo_lab.inference.storage.files import is_temporary, remove
from pyro_elbo_lab.inference.storage.folders import check_folder, filling, slug
from pyro_elbo_lab.inference.storage.netcdf import write_netcdf
from pyro_elbo_lab.report.page import contents, markup, sections
from pyro_elbo_lab.report.page.illustrations import Illustration, draw
from pyro_elbo_lab.trust.comparison.compare import Comparison

_DPI = 200


def write_report(
    comparison: Comparison,
    path: str | Path,
    *,
    losses: Mapping[str, np.ndarray] | None = None,
    evidence: Mapping[str, Sandwich] | None = None,
    calibration: Figure | None = None,
    info: Mapping[str, Any] | None = None,
) -> Path:
    """Write a comparison as a folder and return the path of its `index.html`.

    The page needs no other file and no network. Beside it lie the figures (SVG, PNG), the tables
    (CSV), the comparison and all draws (netCDF). Everything is written to a folder of its own first
    and moved into place at the end, so that a failure leaves `path` as it was.

    Args:
        comparison: what to report.
        path: folder to create. An earlier report in it is replaced; other files in it stay.
        losses: training losses by approximation, arrays of shape `(num_steps,)`.
        evidence: bounds of log p(x) by approximation, as `EvidenceBounds`.
        calibration: a figure of simulation-based calibration, which gets a section of its own; it
            is closed.
        info: what a reader needs to repeat the work, such as model, command, seed; shown as it is
            at the end of the page. `info["model"]` also goes into the title.

    Raises:
        FileExistsError: if `path` is a file, a folder without an earlier report that is not
            empty, or one whose report has been changed since it was written.
        OSError: if the report cannot be written, such as on a full disk.
        ValueError: if `path` has a NUL character.

    >>> import tempfile
    >>> from pyro_elbo_lab.trust.comparison.compare import compare
    >>> rng = np.random.default_rng(0)
    >>> def tree(scale):
    ...     posterior = xr.Dataset({"mu": (("chain", "draw"), scale * rng.normal(size=(2, 500)))})
    ...     return xr.DataTree.from_dict({"posterior": posterior})
    >>> folder = Path(tempfile.mkdtemp()) / "report"
    >>> write_report(compare({"too narrow": tree(0.5)}, tree(1.0)), folder).name
    'index.html'
    >>> sorted(file.name for file in folder.glob("*.nc"))
    ['comparison.nc', 'reference.nc', 'too-narrow.nc']
    """
    check_destination(path)
    known = contents.contents(Path(path))
    with filling(path) as folder:
        comparison.save(folder)
        for name, tree in _files(comparison, _foreign(Path(path))).items():
            write_netcdf(tree, folder / name)
        drawn = draw(comparison, losses or {}, evidence or {}, calibration)
        illustrations = _write_figures(drawn, folder)
        if evidence:
            tables = {name: bounds.table for name, bounds in evidence.items()}
            pd.concat(tables, names=["approximation"]).droplevel(1).to_csv(folder / "evidence.csv")
        beside = sorted(file.name for file in folder.iterdir())
        parts = sections.sections(comparison, illustrations, evidence or {}, info or {}, beside)
        html = markup.page(sections.title(info or {}), sections.lede(comparison), parts)
        (folder / "index.html").write_text(contents.listed(html, folder), encoding="utf-8")
        new = {file.name for file in folder.iterdir()}
        _refuse(path, new & _foreign(Path(path)))
        obsolete = contents.unchanged(Path(path), known) - new
    for name in obsolete:
        remove(Path(path) / name)
    return Path(path) / "index.html"


def check_destination(path: str | Path) -> None:
    """Refuse a place for a report where something else would be lost, or nothing be written.

    Raises:
        FileExistsError, OSError, ValueError: see `write_report`.
    """
    check_folder(path)
    known, foreign = contents.contents(Path(path)), _foreign(Path(path))
    if foreign and not known:
        raise FileExistsError(
            f"{path} holds more than an earlier report, such as {min(foreign)}; choose another "
            "folder"
        )
    _refuse(path, {name for name in foreign & known.keys() if not name.endswith(".nc")})


def _refuse(path: str | Path, names: set[str]) -> None:
    """Raise an error if there are files in the way."""
    if names:
        raise FileExistsError(
            f"{path} has a file {min(names)} that is not of an earlier report, or was changed "
            "since, and that a new report would replace; move it, or choose another folder"
        )


def _foreign(folder: Path) -> set[str]:
    """What is in a folder beside the files of an earlier report as they were written."""
    ours = contents.unchanged(folder, contents.contents(folder))
    found = folder.iterdir() if folder.is_dir() else ()
    return {file.name for file in found if file.name not in ours and not is_temporary(file)}


def _files(comparison: Comparison, foreign: set[str]) -> dict[str, xr.DataTree]:
    """The DataTrees by a file name, no two alike, nor like those of others."""
    files = {"reference.nc": comparison.reference}
    taken = {"reference", "comparison", *(Path(name).stem.lower() for name in foreign)}
    for name, tree in comparison.approximations.items():
        stem = beginning = slug(name)
        number = 2
        while stem in taken:
            stem, number = f"{beginning}-{number}", number + 1
        taken.add(stem)
        files[f"{stem}.nc"] = tree
    return files


def _write_figures(
    figures: Iterable[tuple[str, Figure, str, str]], folder: Path
) -> dict[str, Illustration]:
    """Write each figure as SVG and PNG, and return them by name for the page."""
    return {
        name: Illustration(
            _write_figure(figure, folder / name), figure.get_suptitle(), alt, caption
        )
        for name, figure, alt, caption in figures
    }


def _write_figure(figure: Figure, stem: Path) -> bytes:
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", dpi=_DPI, metadata={"Date": None})
    stem.with_suffix(".svg").write_bytes(svg.getvalue())
    figure.savefig(stem.with_suffix(".png"), dpi=_DPI)
    plt.close(figure)
    return svg.getvalue()
