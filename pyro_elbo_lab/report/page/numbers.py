"""Numbers as HTML."""

import math

import numpy as np

DASH = "\N{EN DASH}"


def number(value: float, signed: bool = False, decimals: int = 2) -> str:
    """A number with so many decimals; an en dash where there is none.

    >>> number(-0.001), number(0.5, signed=True), number(1234.5, decimals=0)
    ('0.00', '+0.50', '1,234')
    """
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else "\N{MINUS SIGN}\N{INFINITY}"
    rounded = round(value, decimals) + 0.0  # no minus before zero
    sign = "+" if signed and rounded else ""
    return f"{rounded:{sign},.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def with_error(value: float, error: float, signed: bool = False) -> str:
    """A number ± its standard error, if that is known.

    >>> with_error(31.5867, 0.012)
    '31.59 <small>± 0.01</small>'
    """
    text = number(value, signed)
    return text if math.isnan(error) else f"{text} <small>± {number(error)}</small>"


def count(value: float) -> str:
    """A whole number, in words of at most four digits where it is large.

    >>> count(950), count(1234567)
    ('950', '1,230,000')
    """
    if math.isnan(value):
        return DASH
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 1000 else f"{value:,.0f}"


def plain(value: object) -> str:
    """What an attribute of a DataTree says: floats with four digits."""
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
