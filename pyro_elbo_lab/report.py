"""A Comparison as a folder: one self-contained page, its figures, tables and draws."""

import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from pyro_elbo_lab import _page, _sections
from pyro_elbo_lab._illustrations import Illustration, draw
from pyro_elbo_lab.comparison import Comparison
from pyro_elbo_lab.plots_evidence import Sandwich

_SUFFIXES = {".html", ".svg", ".png", ".nc", ".csv"}
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
    """Write a comparison as a folder and return the path of its ``index.html``.

    The page needs no other file and no network. Beside it lie the figures (SVG, PNG), the tables
    (CSV), the comparison and all draws (netCDF). Everything is written to a sibling folder first
    and moved into place at the end, so that a failure leaves ``path`` as it was.

    Args:
        comparison: what to report.
        path: folder to create. An earlier report in it is replaced.
        losses: training losses by approximation, arrays of shape ``(num_steps,)``.
        evidence: bounds of log p(x) by approximation, as `EvidenceBounds`.
        calibration: a figure of simulation-based calibration, which gets a section of its own; it
            is closed.
        info: what a reader needs to repeat the work, such as model, command, seed; shown as it is
            at the end of the page. ``info["model"]`` also goes into the title.

    Raises:
        FileExistsError: if ``path`` holds anything that is not an earlier report.

    >>> import tempfile
    >>> from pyro_elbo_lab.comparison import compare
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
    with _replacing(Path(path).resolve()) as folder:
        comparison.save(folder)
        for name, tree in _files(comparison).items():
            tree.to_netcdf(folder / name, engine="h5netcdf")
        drawn = draw(comparison, losses or {}, evidence or {}, calibration)
        illustrations = _write_figures(drawn, folder)
        if evidence:
            tables = {name: bounds.table for name, bounds in evidence.items()}
            pd.concat(tables, names=["approximation"]).droplevel(1).to_csv(folder / "evidence.csv")
        beside = sorted(file.name for file in folder.iterdir())
        parts = _sections.sections(comparison, illustrations, evidence or {}, info or {}, beside)
        html = _page.page(_sections.title(info or {}), _sections.lede(comparison), parts)
        (folder / "index.html").write_text(html, encoding="utf-8")
    return Path(path) / "index.html"


def check_destination(path: str | Path) -> None:
    """Refuse a place for a report where something else would be lost.

    Raises:
        FileExistsError: if ``path`` is a file, or a folder that holds more than an earlier report.
    """
    folder = Path(path)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder for the report")
    entries = sorted(folder.iterdir())
    index = folder / "index.html"
    ours = index.is_file() and _page.GENERATOR in index.read_text(encoding="utf-8", errors="ignore")
    foreign = [file.name for file in entries if file.suffix not in _SUFFIXES or file.is_dir()]
    if entries and (foreign or not ours):
        example = foreign[0] if foreign else entries[0].name
        raise FileExistsError(
            f"{folder} holds more than an earlier report, such as {example}, which would be lost; "
            "choose another folder, or remove this one"
        )


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give a fresh folder that takes the place of ``target`` if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new-{os.getpid()}")
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    fresh.mkdir()
    try:
        yield fresh
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _files(comparison: Comparison) -> dict[str, xr.DataTree]:
    """The DataTrees by a file name that every file system takes, no two alike."""
    files = {"reference.nc": comparison.reference}
    taken = {"reference", "comparison"}
    for name, tree in comparison.approximations.items():
        stem = slug = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.").lower() or "approximation"
        number = 2
        while stem in taken:
            stem, number = f"{slug}-{number}", number + 1
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
