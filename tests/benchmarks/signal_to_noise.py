"""Signal-to-noise ratios of gradients by the number of particles, on Rainforth's toy.

Run from the project's root: python -m tests.benchmarks.signal_to_noise

Prints the table of tests/objectives/laws/test_signal_to_noise.py with up to 4096 particles and 2000
evaluations, and the exact slopes at many more.
"""

from dataclasses import replace

import torch

from tests.objectives.laws.rainforth import ROWS, local_slope, ratios, table

PARTICLES = tuple(4**j for j in range(7))
NUM_EVALUATIONS = 2000


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows = [
        row if row.name.startswith("PIWAE") else replace(row, particles=PARTICLES)
        for row in ROWS.values()
    ]
    print(table([ratios(row, NUM_EVALUATIONS) for row in rows]))
    for row in rows:
        if row.particles == PARTICLES:
            slopes = {k: round(local_slope(row, k), 4) for k in (64, 1024, 16384)}
            print(f"{row.name:26} exact slope between K and 2 K: {slopes}")


if __name__ == "__main__":
    main()
