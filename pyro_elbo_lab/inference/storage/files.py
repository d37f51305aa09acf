"""Files that are there as a whole or not at all."""

import errno
import hashlib
import itertools
import os
import platform
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["replacing"]

_NUMBERS = itertools.count()
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
"""Process numbers say nothing about another machine that shares the folder."""

_MARK = re.compile(r"\.new-([0-9a-f]{6})-(\d+)-\d+(?:\.[^.]*)?$")
_LONGEST_STEM, _LONGEST_SUFFIX = 40, 12  # characters; a file system takes 255 bytes

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose a path on another disk",
    errno.EDQUOT: "free some space of your quota, or choose a path on another disk",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or choose a path on another disk",
    errno.ENAMETOOLONG: "choose a shorter one",
}


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file to, which takes its place at the end.

    Whoever reads `path` finds the earlier file or the new one, never a part. If the block
    raises, or is ended by Ctrl-C or SIGTERM, `path` is as it was and nothing else is left. What
    a process that was killed has left beside `path` is removed. A symbolic link stays one, the
    permissions of an earlier file remain, and devices and pipes are written to directly.

    Args:
        path: of the file, whose folder exists. The path that is given has the same suffix.

    Raises:
        OSError: the file cannot be written; of the class of its cause, such as
            `FileNotFoundError`, and with its `errno`. The message names `path` and what to do.
        ValueError: `path` has a NUL character.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "numbers.csv"
    >>> with replacing(path) as fresh:
    ...     _ = fresh.write_text("1, 2, 3")
    ...     path.exists()
    False
    >>> path.read_text()
    '1, 2, 3'
    """
    target = _checked(Path(path))
    if target.exists() and not target.is_file():  # /dev/stdout, a pipe
        yield target
        return
    sweep(target)
    fresh = beside(target)
    with ended_by_sigterm():
        try:
            yield fresh
            if target.exists():
                shutil.copymode(target, fresh)
            os.replace(fresh, target)
        except OSError as error:
            refuse(path, error)
        finally:
            remove(fresh)


def beside(target: Path) -> Path:
    """A path in the same folder for what will replace `target`, which `sweep` knows again."""
    suffix = target.suffix if len(target.suffix) <= _LONGEST_SUFFIX else ""
    number = f"{_HOST}-{os.getpid()}-{next(_NUMBERS)}"
    return target.with_name(f"{_beginning(target)}.new-{number}{suffix}")


def sweep(target: Path) -> None:
    """Remove what processes of this machine that have ended left beside `target`."""
    with suppress(OSError):
        for path in target.parent.iterdir():
            mark = _MARK.search(path.name)
            if mark and path.name[: mark.start()] == _beginning(target):
                host, process = mark[1], int(mark[2])
                if host == _HOST and not _is_alive(process):
                    remove(path)


def is_temporary(path: Path) -> bool:
    """Whether a path looks like one that `beside` gave to somebody."""
    return _MARK.search(path.name) is not None


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):  # False where a path is impossible
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def refuse(path: str | Path, error: OSError) -> NoReturn:
    """Raise an error of the same class and number that says what was not written.

    >>> refuse("fit.pt", OSError(errno.ENOSPC, "No space left on device"))
    Traceback (most recent call last):
    OSError: [Errno 28] fit.pt cannot be written: No space left on device; free some space, or \
choose a path on another disk
    """
    while isinstance(error.__cause__, OSError):  # a file within a folder says it already
        error = error.__cause__
    remedy = _REMEDIES.get(error.errno or 0, "choose another path")
    reason = error.strerror or str(error)
    text = f"{path} cannot be written: {reason}; {remedy}"
    raise OSError(error.errno or errno.EIO, text) from error


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM raises SystemExit, so that `finally` is heeded.

    Where the program handles SIGTERM itself, or the thread is not the main one, it stays so.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _checked(path: Path) -> Path:
    """The file that `path` stands for, which can be written as far as can be told before."""
    if "\0" in str(path):
        raise ValueError(f"A path cannot have a NUL character, got {str(path)!r}.")
    try:
        target = path.resolve()
        with suppress(FileNotFoundError):
            target.lstat()  # a name that is too long, or below a file
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file")
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {target.parent}")
        for needed in (target, target.parent):
            if needed.exists() and not os.access(needed, os.W_OK):
                raise PermissionError(errno.EACCES, f"no permission to write {needed}")
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        refuse(path, error if isinstance(error, OSError) else OSError(errno.ELOOP, str(error)))
    return target


def _beginning(target: Path) -> str:
    return f".{target.stem.lstrip('.')[:_LONGEST_STEM]}"


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
