"""Deliberate faults: python -m tests.mutants."""

import sys

from tests.mutants.run import main

sys.exit(min(main(), 1))
