"""What an objective does with each latent of a model, as a table to print."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One latent.

    Attributes:
        site: its name.
        distribution: what the guide draws it from.
        drawn: "reparameterized" or "not reparameterized"; "-" for a function of other latents.
        place: "shared", "joint weight", or the plates whose cells have weights of their own.
        gradient: the estimator of its part of the gradient.
        kl: how its part of KL(q || p) is evaluated.
        why: the reason for all this.
    """

    site: str
    distribution: str
    drawn: str
    place: str
    gradient: str
    kl: str
    why: str


@dataclass(frozen=True)
class Explanation:
    """The answer of `objective.explain(model, guide, *args)`. Print it.

    Attributes:
        objective: the objective's name and arguments.
        rows: one for every latent of the guide.
        notes: what holds for all of them.
    """

    objective: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def __getitem__(self, site: str) -> Row:
        """The row of a site."""
        for row in self.rows:
            if row.site == site:
                return row
        raise KeyError(f"no latent '{site}'; there are {[row.site for row in self.rows]}")

    def __str__(self) -> str:
        header = ("site", "guide", "draws", "place", "gradient", "KL term", "why")
        table = [header] + [
            (r.site, r.distribution, r.drawn, r.place, r.gradient, r.kl, r.why) for r in self.rows
        ]
        widths = [max(len(line[i]) for line in table) for i in range(len(header) - 1)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True))
            for line in table
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([self.objective, *[line.rstrip() for line in lines], *self.notes])

    __repr__ = __str__
