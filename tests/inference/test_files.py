"""Files are there as a whole or not at all, whatever happens while they are written."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_elbo_lab.inference.storage import files
from pyro_elbo_lab.inference.storage.files import replacing


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    path.write_text("earlier")
    with replacing(path) as fresh:
        fresh.write_text("new")
        assert fresh.suffix == ".pt" and fresh.parent == tmp_path
        assert path.read_text() == "earlier"
    assert path.read_text() == "new" and names(tmp_path) == {"fit.pt"}


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), OSError(28, "full")])
def test_a_failure_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "fit.pt"
    path.write_text("earlier")
    with pytest.raises(type(error)), replacing(path) as fresh:
        fresh.write_text("half")
        raise error
    assert path.read_text() == "earlier" and names(tmp_path) == {"fit.pt"}


def test_errors_keep_their_class_and_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    with (
        pytest.raises(PermissionError, match=r"fit\.pt cannot be written: no;") as e,
        replacing(path),
    ):
        raise PermissionError(errno.EACCES, "no")
    assert e.value.errno == errno.EACCES
    with pytest.raises(OSError, match=r"fit\.pt .*full; free some space") as f, replacing(path):
        raise OSError(errno.ENOSPC, "full")
    assert f.value.errno == errno.ENOSPC


BAD_PATHS = {
    "folder": ("there", IsADirectoryError, "it is a folder"),
    "no folder": ("nowhere/fit.pt", FileNotFoundError, "there is no folder"),
    "below a file": ("file/fit.pt", NotADirectoryError, "Not a directory"),
    "too long": ("a" * 300, OSError, "choose a shorter one"),
    "NUL": ("a\0b", ValueError, "NUL"),
    "circle": ("circle", OSError, "cannot be written"),
}


@pytest.mark.parametrize("case", BAD_PATHS)
def test_bad_paths_are_refused_before_the_block(tmp_path: Path, case: str) -> None:
    name, error, message = BAD_PATHS[case]
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("kept")
    (tmp_path / "circle").symlink_to("circle")
    before, entered = names(tmp_path), False
    with pytest.raises(error, match=message), replacing(tmp_path / name):
        entered = True
    assert not entered and names(tmp_path) == before


def test_links_and_permissions_remain(tmp_path: Path) -> None:
    real, link = tmp_path / "real.pt", tmp_path / "link.pt"
    real.write_text("earlier")
    real.chmod(0o640)
    link.symlink_to("real.pt")
    with replacing(link) as fresh:
        fresh.write_text("new")
    assert link.is_symlink() and real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    with replacing(tmp_path / "new") as fresh:
        fresh.write_text("")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has pipes in the file system")
def test_pipes_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with replacing(tmp_path / "pipe") as fresh:
        assert fresh == (tmp_path / "pipe").resolve()
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("name", ["\N{GREEK SMALL LETTER MU}" * 120, "a." + "b" * 200, ".hidden"])
def test_names_of_any_length_and_alphabet(tmp_path: Path, name: str) -> None:
    with replacing(tmp_path / name) as fresh:
        fresh.write_text("new")
    assert names(tmp_path) == {name}


WRITER = """
import runpy, sys, time
from pathlib import Path
replacing = runpy.run_path(sys.argv[2])["replacing"]  # without the package, which takes seconds
with replacing(Path(sys.argv[1])) as fresh:
    fresh.write_text("half")
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path: Path) -> subprocess.Popen:
    """A process in the middle of writing ``fit.pt``."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "fit.pt"), files.__file__]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    assert len(names(tmp_path)) == 1
    return process


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_a_process_that_is_asked_to_end_leaves_nothing(
    tmp_path: Path, writer: subprocess.Popen
) -> None:
    writer.send_signal(signal.SIGTERM)
    assert writer.wait(60) == 128 + signal.SIGTERM
    assert not names(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_what_a_killed_process_leaves_is_swept(tmp_path: Path, writer: subprocess.Popen) -> None:
    others = {".fit.new-1.pt", ".fits.new-ffffff-1-1.pt"}  # nobody's that we know
    for name in others:
        (tmp_path / name).write_text("")
    for _ in range(2):  # while the writer lives, and after it was killed
        with replacing(tmp_path / "fit.pt") as fresh:
            fresh.write_text("new")
        left = names(tmp_path) - others - {"fit.pt"}
        assert len(left) == (writer.poll() is None)
        writer.kill()
        writer.wait(60)
