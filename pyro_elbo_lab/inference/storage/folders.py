"""Folders that get all their new files, or none."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyro_elbo_lab.inference.storage.files import beside, ended_by_sigterm, refuse, remove, sweep

__all__ = ["check_folder", "filling", "slug"]

_LONGEST_NAME = 100  # of the files that are written into a folder, in characters
_LONGEST_SLUG = 60


def slug(name: str) -> str:
    """What every file system takes as a part of a file's name; others may have the same.

    >>> slug("normal, IW:16"), slug("a.b"), slug("../")
    ('normal-iw-16', 'a.b', 'approximation')
    """
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", name)[:_LONGEST_SLUG]
    return plain.strip("-.").lower() or "approximation"


def check_folder(path: str | Path) -> None:
    """Refuse a path where no folder can be created, or none be written to.

    Args:
        path: the folder, which need not exist.

    Raises:
        FileExistsError: `path` is a file.
        OSError: the folder cannot be created or written to; the message says why.
        ValueError: `path` has a NUL character.
    """
    with _fresh(path):
        pass


@contextmanager
def filling(path: str | Path) -> Iterator[Path]:
    """Give an empty folder, whose files move to the folder `path` at the end.

    Files of the same name are replaced, others stay. If the block raises, or is ended by Ctrl-C or
    SIGTERM, `path` is as it was and nothing else is left. What a process that was killed has
    left there is removed.

    Args:
        path: the folder, created where it is missing.

    Raises:
        FileExistsError, OSError, ValueError: see `check_folder`; the block's own errors, if they
            are an OSError, are raised with a message that names `path`.
    """
    with _fresh(path) as fresh:
        yield fresh
        names = sorted(file.name for file in fresh.iterdir())
        for name in sorted(names, key="index.html".__eq__):  # the page last: it shows the others
            os.replace(fresh / name, fresh.parent / name)


@contextmanager
def _fresh(path: str | Path) -> Iterator[Path]:
    """An empty folder within the folder `path`, gone at the end."""
    folder = _place(path)
    with ended_by_sigterm():
        missing: list[Path] = []
        fresh = beside(folder / "results")
        try:
            missing += (place for place in (folder, *folder.parents) if not place.exists())
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder / "results")
            fresh.mkdir()
            yield fresh
        except FileExistsError:
            raise
        except OSError as error:
            refuse(path, error)
        finally:
            remove(fresh)
            for place in missing:  # as far as they are empty
                with suppress(OSError):
                    place.rmdir()


def _place(path: str | Path) -> Path:
    """The folder that `path` stands for, if it can be one."""
    if "\0" in str(path):
        raise ValueError(f"A path cannot have a NUL character, got {str(path)!r}.")
    try:
        folder = Path(path).resolve()
        with suppress(FileNotFoundError):
            (folder / ("x" * _LONGEST_NAME)).lstat()
    except NotADirectoryError as error:
        if not folder.exists():
            refuse(path, error)
        raise FileExistsError(f"{path} is a file; name a folder") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        refuse(path, error if isinstance(error, OSError) else OSError(errno.ELOOP, str(error)))
    return folder
