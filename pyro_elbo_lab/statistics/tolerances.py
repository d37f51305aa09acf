"""What counts as an error of an approximation: one table of limits."""

__all__ = ["FALSE_ALARM_RATE", "MIN_DRAWS_PER_CHAIN", "TAIL_TOLERANCE", "TOLERANCE", "TOO_NOISY"]

TOLERANCE = 0.1
"""Errors that do not matter in practice: a mean off by a tenth of the reference sd, an sd by 10 %.

With both at once the central 90 % interval still covers 86 % of the reference. A Wasserstein
distance of 0.1 is what a mean off by a tenth amounts to.
"""

TAIL_TOLERANCE = 0.2
"""Error of the width of the central 98 % that does not matter: of it, 1 % at either end is seen."""

TOO_NOISY = 0.25
"""Error, in reference sds, that must be detectable before an agreement means anything."""

FALSE_ALARM_RATE = 0.01
"""Probability that noise alone makes any of the parameters of one approximation look wrong."""

MIN_DRAWS_PER_CHAIN = 25
"""Fewest draws a chain must have: five draws in the upper fifth are what a tail fit needs."""
