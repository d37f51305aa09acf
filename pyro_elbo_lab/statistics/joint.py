"""Distances between joint distributions, each beside what two equal ones would show.

Draws have shape `(draw, parameter)`, are standardized, and are assumed independent: the noise
floors come from permuting the draws of both sides.
"""

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

MAX_PARAMETERS = 100
"""Most parameters that a joint distance is computed of."""

MAX_DRAWS = 1000
"""Most draws of each side that a joint distance is computed of."""

NUM_PERMUTATIONS = 99
"""With them the smallest p-value is 1/100."""

_MIN_PROJECTIONS = 50
_MOST_PRODUCTS = 20
_FOLDS = 5
_FARTHEST = 10.0

_PERMUTED = ("sliced_wasserstein", "mmd", "energy_distance")
COLUMNS = (
    *(f"{name}{suffix}" for name in _PERMUTED for suffix in ("", "_floor", "_p")),
    "c2st",
    "c2st_se",
)


def joint_distances(draws: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Distances of equally many `draws` and `reference` draws, `(n, d)` each.

    * `sliced_wasserstein`: the root mean square, over random orthonormal bases, of the
      2-Wasserstein distance of the projections, in reference sds (Bonneel, Rabin, Peyré & Pfister
      2015);
    * `mmd`: maximum mean discrepancy with a Gaussian kernel whose length is the median distance
      of all draws (Gretton, Borgwardt, Rasch, Schölkopf & Smola 2012), between 0 and √2;
    * `energy_distance`: √(2 E|x - y| - E|x - x'| - E|y - y'|) (Székely & Rizzo 2013);
    * `c2st`: share of draws that a classifier attributes to the right side, cross-validated
      (Lopez-Paz & Oquab 2017): 0.5 for equal distributions, 1 for distributions that do not
      overlap. The classifier is a logistic regression on the parameters, their squares and, up to
      20 parameters, their products, the best possible one for two normal distributions.

    `_floor` is what two samples of one distribution exceed with probability 5 %, `_p` the
    probability that they come so far or farther, both by permutation; `c2st_se` is the standard
    error of the accuracy.

    >>> rng = np.random.default_rng(0)
    >>> found = joint_distances(rng.normal(size=(1000, 2)) + [2, 0], rng.normal(size=(1000, 2)))
    >>> round(found["sliced_wasserstein"], 1), round(found["c2st"], 2)  # exactly √2 and Φ(1)
    (1.4, 0.84)
    """
    rng = np.random.default_rng(0)
    signs = _signs(len(draws), rng)
    pooled = np.concatenate([draws, reference])
    between = cdist(pooled, pooled)
    statistics = {
        "sliced_wasserstein": sliced_wasserstein(pooled, signs > 0, rng),
        "mmd": _contrast(np.exp(-((between / median_distance(between)) ** 2) / 2), signs),
        "energy_distance": _contrast(-between, signs),
    }
    result = {}
    for name, values in statistics.items():
        observed, permuted = values[0], values[1:]
        result[name] = float(observed)
        result[f"{name}_floor"] = float(np.quantile(permuted, 0.95))
        result[f"{name}_p"] = float((1 + (permuted >= observed).sum()) / values.size)
    return result | classifier_test(draws, reference)


def sliced_wasserstein(
    pooled: np.ndarray, first: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The sliced 2-Wasserstein distance for each way of splitting the pooled draws.

    `first` has shape `(splits, 2 n)` and says which n draws are on the first side.
    """
    projected = pooled @ _directions(pooled.shape[1], rng)
    order = np.argsort(projected, axis=0)
    total = np.zeros(len(first))
    for line, places in zip(projected.T, order.T, strict=True):
        sides = first[:, places]
        values = np.broadcast_to(line[places], sides.shape)
        a, b = (values[mask].reshape(len(first), -1) for mask in (sides, ~sides))  # still sorted
        total += ((a - b) ** 2).mean(1)
    return np.sqrt(total / projected.shape[1])


def _directions(d: int, rng: np.random.Generator) -> np.ndarray:
    """Random orthonormal bases, together at least 50 directions, (d, directions)."""
    bases = [np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(-(-_MIN_PROJECTIONS // d))]
    return np.concatenate(bases, axis=1)


def median_distance(between: np.ndarray) -> float:
    """The median distance of two different draws, from all distances `(n, n)`."""
    return float(np.median(between[np.triu_indices(len(between), 1)])) or 1.0


def classifier_test(draws: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The cross-validated accuracy of telling draws from reference, and its error."""
    x = np.clip(np.concatenate([draws, reference]), -_FARTHEST, _FARTHEST)
    side = np.repeat([1, 0], [len(draws), len(reference)])
    if x.shape[1] <= _MOST_PRODUCTS:
        features = make_pipeline(PolynomialFeatures(2, include_bias=False), StandardScaler())
        classifier = make_pipeline(features, LogisticRegression(max_iter=200))
    else:
        x = np.concatenate([x, x**2], axis=1)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    accuracy = float(cross_val_score(classifier, x, side, cv=folds).mean())
    return {"c2st": accuracy, "c2st_se": float(np.sqrt(0.25 / len(x)))}


def _signs(n: int, rng: np.random.Generator) -> np.ndarray:
    """+1/n on one side and -1/n on the other: as they are, then permuted, `(splits, 2 n)`."""
    signs = np.repeat([1.0, -1.0], n) / n
    return np.stack([signs, *(rng.permutation(signs) for _ in range(NUM_PERMUTATIONS))])


def _contrast(similarity: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """√(E k(x, x') + E k(y, y') - 2 E k(x, y)) of a similarity k, for each split."""
    return np.sqrt(np.maximum(((signs @ similarity) * signs).sum(1), 0.0))
