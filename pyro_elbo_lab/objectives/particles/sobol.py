"""Randomized quasi-Monte Carlo: Sobol points in place of the guide's Gaussian noise.

Reparameterized draws are functions of standard normal noise. Independent noise leaves gaps and
clumps; the points of a *net* fill space evenly, and a random scramble makes each of them, by
itself, uniform. So every particle still has exactly the distribution q, averages over particles
stay unbiased, and their variance falls faster than 1/N: for smooth integrands nearly as 1/N^3.

What is lost is independence between the particles of a net, so it matters which of them form one:

* The M outer particles are averaged, and averages need no independence. One net of M points serves
  the noise of all latents, and as each point is uniform, every estimator that is unbiased particle
  by particle stays so. A point holds the noise of all K inner particles, which are therefore
  independent: the expected bound and its doubly reparameterized gradient are untouched.
* Where no latent of a cell is doubly reparameterized, the K inner particles form the nets, one for
  each outer particle. They meet in a non-linear bound F. The mean weight is still an unbiased
  estimate of p(x), so log mean_k is still a lower bound, but its expectation is not that of K
  independent draws (it is usually tighter), and only its pathwise gradient is right. This gradient
  can be far noisier than the doubly reparameterized one of random particles.
* Leave-one-out baselines need independence: a latent whose own draw is a Sobol point cannot have
  the score estimator. Other latents can, as their draws are independent of one another given all
  the noise.

The scramble is a random lower triangular matrix over the binary digits, then a random digital shift
(Matousek 1998). `torch.quasirandom.SobolEngine` has the same one, 30 digits long, at a cost of 80
microseconds a dimension for every new scramble; here only the digits that N points have are
multiplied.

References:
    Sobol (1967); Owen (1997), Scrambled net variance for integrals of smooth functions; Matousek
    (1998), On the L2-discrepancy for anchored boxes; Buchholz, Wenzel and Mandt (2018), Quasi-Monte
    Carlo variational inference.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import default_process_message
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.quasirandom import SobolEngine

from pyro_elbo_lab.objectives.gradients.unbiased import Choice
from pyro_elbo_lab.objectives.particles.layout import Layout
from pyro_elbo_lab.programs.enumeration import Site
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.structure.analysis import Structure
from pyro_elbo_lab.programs.structure.factors import FactorKey
from pyro_elbo_lab.programs.structure.recall import aside
from pyro_elbo_lab.programs.structure.runs import run

Sampler = Literal["random", "sobol"]
SAMPLERS: tuple[Sampler, ...] = ("random", "sobol")
MAX_DIMENSIONS = SobolEngine.MAXDIM
DIGITS = 52  # so that (integer + 1/2) / 2^52 is exact in float64, and never 0 or 1


@dataclass(frozen=True)
class Placement:
    """Which latents have Sobol points, and which particles form their nets.

    Attributes:
        outer: latents whose noise is part of the net of M points.
        inner: latents whose noise is part of a net of K points for each outer particle.
        local: the latents that differ between the inner particles.
    """

    outer: frozenset[str]
    inner: frozenset[str]
    local: frozenset[str]

    @property
    def notes(self) -> tuple[str, ...]:
        """What `explain` says."""
        kinds = (
            ("one net over the outer particles", self.outer),
            ("a net over the inner particles of each outer one", self.inner),
        )
        return tuple(
            f"Sobol points: {kind}, for the Gaussian noise of {', '.join(sorted(names))}"
            for kind, names in kinds
            if names
        )


def place(
    structure: Structure,
    layout: Layout,
    choices: Mapping[str, Choice],
    num_inner: int,
    num_outer: int,
    pair: Pair,
) -> Placement:
    """Choose the nets for which the chosen gradient estimators stay unbiased.

    Args:
        structure: the dependencies of model and guide.
        layout: cells and shared latents.
        choices: the estimator of every latent.
        num_inner: K.
        num_outer: M.
        pair: model and guide with their arguments.

    Returns:
        The placement.

    Raises:
        ValueError: the guide has no Gaussian noise; a latent that has some has the score estimator.
    """
    gaussian = gaussian_latents(pair, structure)
    for name in sorted(gaussian):
        if choices[name].estimator == "score":
            raise ValueError(
                f"gradient='score' is biased for latent '{name}' with sampler='sobol': its "
                "baselines are other particles, which depend on its own draw. Use "
                "gradient='auto', or sampler='random'."
            )
    local = layout.local if num_inner > 1 else frozenset()
    independent = {
        layout.cells[FactorKey("guide", name)]
        for name in local
        if choices[name].estimator in ("doubly_reparameterized", "doubly_reparameterized_wake")
    }
    inner = frozenset(
        name
        for name in gaussian & local
        if layout.cells[FactorKey("guide", name)] not in independent
    )
    if num_outer == 1 and not inner:
        warn(
            "sampler='sobol' has no effect with one outer particle"
            + (
                ", as doubly reparameterized gradients need independent inner ones. Use more "
                "outer particles, or gradient='pathwise'."
                if local
                else ". Use more particles."
            )
        )
    return Placement(gaussian - inner, inner, local)


def gaussian_latents(pair: Pair, structure: Structure) -> frozenset[str]:
    """The latents whose draws in the guide are made from Gaussian noise, found by one run.

    Args:
        pair: model and guide with their arguments.
        structure: their dependencies.

    Raises:
        ValueError: there are none.
    """
    found = set()

    def note(site: Site, call: int, blank: Tensor) -> Tensor:
        found.add(site["name"])
        return torch.randn_like(blank)

    latents = structure.latents.values()
    reparameterized = frozenset(latent.name for latent in latents if latent.reparameterized)
    with aside(), torch.no_grad(), _Noise(reparameterized, note):
        run(pair)
    if not found:
        drawn = [f"'{latent.name}' ({latent.distribution})" for latent in latents]
        raise ValueError(
            "sampler='sobol' found no reparameterized Normal noise in guide "
            f"{getattr(pair.guide, '__name__', type(pair.guide).__name__)}, whose random draws are "
            f"{', '.join(drawn) or 'none'}. Use sampler='random'."
        )
    return frozenset(found)


def scrambled_sobol(
    num_points: int,
    num_nets: int,
    first: int,
    num_dims: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Independent scrambles of the first points of a Sobol sequence.

    Args:
        num_points: N; nets are even where it is a power of 2.
        num_nets: R, the number of independent scrambles.
        first: the first dimension.
        num_dims: D; first + D is at most `MAX_DIMENSIONS`.
        device: where they are drawn.

    Returns:
        (N, R, D) float64, each point uniform on (0, 1)^D, never 0 or 1.

    Example:
        >>> u = scrambled_sobol(4, 1, 0, 1).flatten()
        >>> (4 * u).floor().sort().values  # one in each quarter
        tensor([0., 1., 2., 3.], dtype=torch.float64)
    """
    num_digits = (num_points - 1).bit_length()
    capacity = min(MAX_DIMENSIONS, 1 << max(5, (first + num_dims - 1).bit_length()))
    place = torch.device(device)
    points = _sobol(num_points, num_digits, capacity, place)[:, None, first : first + num_dims]
    shifts = torch.randint(1 << DIGITS, (num_nets, num_dims), device=place)
    scrambled = shifts.expand(num_points, -1, -1)
    for digit in range(num_digits):
        unit = 1 << (DIGITS - 1 - digit)
        column = unit + torch.randint(unit, (num_nets, num_dims), device=place)
        scrambled = scrambled ^ ((points >> (num_digits - 1 - digit) & 1) * column)
    return (scrambled.double() + 0.5) / (1 << DIGITS)


@lru_cache(maxsize=8)
def _sobol(num_points: int, num_digits: int, num_dims: int, device: torch.device) -> Tensor:
    """The leading binary digits of the unscrambled sequence as integers, (N, D)."""
    points = SobolEngine(num_dims).draw(num_points, dtype=torch.float64)
    return (points * (1 << num_digits)).long().to(device)


class Nets:
    """The points of one evaluation; they are drawn when a site first needs them.

    Args:
        placement: what noise they replace, nothing if None.
        num_inner: K.
        num_outer: M.
    """

    def __init__(self, placement: Placement | None, num_inner: int, num_outer: int) -> None:
        nothing = frozenset[str]()
        self.placement = placement or Placement(nothing, nothing, nothing)
        self.names = self.placement.outer | self.placement.inner
        self.num_inner = num_inner
        self.num_outer = num_outer
        self._used = {"outer": 0, "inner": 0}  # dimensions
        self._noise: dict[tuple[str, int], Tensor] = {}

    def all_particles(self) -> Messenger:
        """A handler, to be entered outside the particle plate, that replaces the noise of all."""

        def replace(site: Site, call: int, blank: Tensor) -> Tensor:
            num = self.num_inner * self.num_outer
            if num == 1:
                return self._of(site, call, blank, 1).reshape(blank.shape)
            if blank.shape[:1] != (num,) or _is_expanded(site["fn"]):
                raise ValueError(
                    f"Latent '{site['name']}' draws noise of shape {tuple(blank.shape)}, expected "
                    f"its first dimension to be that of the {num} particles. Use "
                    "vectorize_particles=False or sampler='random'."
                )
            return self._of(site, call, blank, num).reshape(blank.shape)

        return _Noise(self.names, replace)

    def particle(self, index: int) -> Messenger:
        """A handler that replaces the noise of one particle, inner * M + outer."""

        def replace(site: Site, call: int, blank: Tensor) -> Tensor:
            return self._of(site, call, blank, 1)[index].reshape(blank.shape)

        return _Noise(self.names, replace)

    def _of(self, site: Site, call: int, blank: Tensor, num_particles: int) -> Tensor:
        """The noise of all particles in one call of one site, (K * M, D), for a tensor that holds
        the noise of so many particles."""
        name, num_dims = site["name"], blank.numel() // num_particles
        if (name, call) not in self._noise:
            self._noise[name, call] = self._draw(name, num_dims, blank.device)
        noise = self._noise[name, call]
        if noise.shape[1] != num_dims:
            raise ValueError(
                f"Latent '{name}' draws {num_dims} numbers for one particle and {noise.shape[1]} "
                "for another, expected the same number. Use sampler='random'."
            )
        return noise

    def _draw(self, name: str, num_dims: int, device: torch.device) -> Tensor:
        K, M = self.num_inner, self.num_outer
        if name in self.placement.inner:
            first = self._take("inner", name, num_dims)
            points = scrambled_sobol(K, M, first, num_dims, device)
        else:
            copies = K if name in self.placement.local else 1
            first = self._take("outer", name, copies * num_dims)
            points = scrambled_sobol(M, 1, first, copies * num_dims, device)
            points = points.reshape(M, copies, num_dims).movedim(0, 1).expand(K, -1, -1)
        return torch.special.ndtri(points).reshape(K * M, num_dims)

    def _take(self, net: str, name: str, num_dims: int) -> int:
        """The first of the net's next dimensions."""
        first = self._used[net]
        if first + num_dims > MAX_DIMENSIONS:
            raise ValueError(
                f"sampler='sobol' has at most {MAX_DIMENSIONS} dimensions, but latent '{name}' "
                f"needs {num_dims} and those before it have taken {first}. Use sampler='random', "
                "or subsample the plates of the largest latents."
            )
        self._used[net] += num_dims
        return first


def _is_expanded(fn: Any) -> bool:
    """Whether Pyro expands a distribution from outside, which may put particles anywhere."""
    while hasattr(fn, "base_dist"):
        if type(fn).__name__ == "ExpandedDistribution":
            return True
        fn = fn.base_dist
    return False


class _Noise(Messenger):
    """Draws at the named sites with another source of Gaussian noise.

    It must be the outermost handler: sites are drawn when all others have had their say.

    Args:
        names: of the sites.
        replace: (site, how many calls at this site came before, a tensor to fill) -> noise.
    """

    def __init__(
        self, names: frozenset[str], replace: Callable[[Site, int, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.names = names
        self.replace = replace

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.names:
            with _ReplaceNormal(lambda call, blank: self.replace(msg, call, blank)):
                default_process_message(msg)


class _ReplaceNormal(TorchFunctionMode):
    """Fills tensors from a function where `Tensor.normal_` would fill them, which is where all
    reparameterized Normal distributions have their noise from."""

    def __init__(self, replace: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self.replace = replace
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.normal_ or len(args) > 1 or kwargs:
            return func(*args, **(kwargs or {}))
        noise = self.replace(self.calls, args[0])
        self.calls += 1
        return args[0].copy_(noise)
