"""Words to the user: warnings that name the user's line, and errors in one line."""

import contextlib
import os
import warnings
from functools import cache
from pathlib import Path

import pyro
import torch

__all__ = ["first_line", "warn"]


def warn(text: str) -> None:
    """Warn of the user's line that has led here, through Pyro and PyTorch or not.

    Args:
        text: of the warning.
    """
    warnings.warn(text, skip_file_prefixes=_not_the_users())


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class if it has none.

    Args:
        error: any.

    Example:
        >>> first_line(ValueError("no data\\nhere")), first_line(KeyError())
        ('no data', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@cache
def _not_the_users() -> tuple[str, ...]:
    folders = [Path(__file__).parents[1], *map(Path, (*pyro.__path__, *torch.__path__))]
    return *(f"{folder}{os.sep}" for folder in folders), contextlib.__file__
