"""Words to the user: warnings that name the user's line, and errors in one line."""

import warnings
from pathlib import Path

__all__ = ["first_line", "warn"]


def warn(text: str) -> None:
    """Warn of the line outside of this package that has called it.

    Args:
        text: of the warning.
    """
    warnings.warn(text, skip_file_prefixes=(str(Path(__file__).parents[1]),))


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class if it has none.

    Args:
        error: any.

    Example:
        >>> first_line(ValueError("no data\\nhere")), first_line(KeyError())
        ('no data', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
