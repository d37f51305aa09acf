"""A disk that is full, or a limit of a file's size: an error, nothing half-written, no crash."""

import contextlib
import errno
import gc
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pyro_elbo_lab.cli import main, session
from pyro_elbo_lab.inference.storage.files import replacing
from pyro_elbo_lab.inference.storage.netcdf import write_netcdf
from pyro_elbo_lab.report.write import write_report
from pyro_elbo_lab.trust.comparison.compare import Comparison, compare
from tests.cli.test_command_input import GUIDE, HEADER, MODEL
from tests.support.planted import normal, standard_normal

resource = pytest.importorskip("resource", reason="this system has no limits of a file's size")


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """Files can have so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """``folder`` is a disk of its own, of so many bytes."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk takes a Linux where the tests run as root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(params=["limit", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Where 64 KiB are the most."""
    place = tmp_path / "small"
    place.mkdir()
    with limited(2**16) if request.param == "limit" else small_disk(place, 2**16):
        yield place


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare({"q": normal(1)}, standard_normal(0))


def assert_full(error: OSError) -> None:
    assert error.errno in (errno.ENOSPC, errno.EFBIG)
    assert re.search("cannot be written: .*; (free some space|raise the limit)", str(error))


def draws(size: int) -> xr.DataTree:
    values = np.random.default_rng(0).normal(size=(2, size, 4))
    groups = {
        name: xr.Dataset({f"z{i}": (("chain", "draw", "i"), values) for i in range(3)})
        for name in ("posterior", "prior")
    }
    return xr.DataTree.from_dict(groups, name=None)


@pytest.mark.parametrize("size", [100, 500, 900, 5000])
def test_netcdf(folder: Path, size: int) -> None:
    """At whatever size the disk is full, within the draws or the metadata after them."""
    with pytest.raises(OSError) as error:
        write_netcdf(draws(size), folder / "draws.nc")
        write_netcdf(draws(400), folder / "more.nc")
    assert_full(error.value)
    assert not (folder / "more.nc").exists()
    assert {path.name for path in folder.iterdir()} <= {"draws.nc"}
    gc.collect()  # HDF5 has closed its files


def test_a_netcdf_file_is_what_xarray_writes(tmp_path: Path) -> None:
    write_netcdf(draws(50), tmp_path / "ours.nc")
    with xr.open_datatree(tmp_path / "ours.nc", engine="h5netcdf") as found:
        xr.testing.assert_identical(found.load(), draws(50))


def test_an_earlier_file_stays(folder: Path) -> None:
    (folder / "fit.pt").write_bytes(b"earlier")
    with pytest.raises(OSError) as error, replacing(folder / "fit.pt") as fresh:
        fresh.write_bytes(bytes(2**17))
    assert_full(error.value)
    assert [path.name for path in folder.iterdir()] == ["fit.pt"]
    assert (folder / "fit.pt").read_bytes() == b"earlier"


def test_a_report_is_not_half_written(folder: Path, comparison: Comparison) -> None:
    with pytest.raises(OSError) as error:
        write_report(comparison, folder / "new" / "report")
    assert_full(error.value)
    assert str(folder / "new" / "report") in str(error.value)
    assert not list(folder.iterdir())


def test_a_comparison_is_saved_as_a_whole(folder: Path, comparison: Comparison) -> None:
    with pytest.raises(OSError):
        many = {f"q{i}": normal(i) for i in range(30)}
        compare(many, standard_normal(0)).save(folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("command", ["compare", "evidence", "sbc"])
def test_results_of_a_command_are_written_elsewhere(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session.tempfile, "tempdir", str(tmp_path))
    Path("m.py").write_text(HEADER + MODEL + GUIDE)
    options = ["--guide", "mine", "--steps", "20", "--draws", "30", "--out", "small/out"]
    options += ["--simulations", "10"] if command == "sbc" else ["--num-samples", "100"]
    options += [] if command == "sbc" else ["--chains", "2", "--warmup", "50"]
    Path("small").mkdir()
    with small_disk(Path("small"), 2**14):
        assert main.main([command, "m.py", *options]) == 2
        assert not list(Path("small").iterdir())
    out, err = capsys.readouterr()
    assert "mine, standard: " in out
    last = err.splitlines()[-1]
    message = r"small/out cannot be written: No space [^:]*\. Instead, (/\S+/out)/\S+ .*written"
    said = re.search(message, last)
    assert said, last
    written = list(Path(said[1]).iterdir())
    assert len(written) >= 3 and all(path.stat().st_size for path in written)


def test_if_nothing_can_be_written_the_numbers_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session.tempfile, "tempdir", str(tmp_path / "nowhere"))
    Path("m.py").write_text(HEADER + MODEL + GUIDE)
    options = ["--guide", "mine", "--steps", "20", "--draws", "10", "--simulations", "10"]
    with limited(2**10):
        assert main.main(["sbc", "m.py", *options]) == 2
    out, err = capsys.readouterr()
    assert "mine, standard: " in out and "p_symmetric" in out
    assert re.search(r"calibration cannot be written: .*Nor can a folder of temporary files", err)
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"m.py"}
    assert os.getcwd() == str(tmp_path)
