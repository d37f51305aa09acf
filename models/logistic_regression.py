"""Bayesian logistic regression: is a breast tumour benign?

    b ~ Normal(0, 1),  w ~ Normal(0, I),  y_i ~ Bernoulli(sigmoid(b + x_i . w)),  i = 1..569.

The covariates are 30 measurements of cell nuclei, standardized (mean 0, sd 1). Many are functions
of each other (radius, perimeter, area), so the prior matters and the posterior is correlated.
Nothing about it is known exactly.

Data: W. N. Street, W. H. Wolberg and O. L. Mangasarian (1993), Nuclear feature extraction for
breast tumor diagnosis; as scikit-learn ships them (`load_breast_cancer`; 1 is benign).
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def data() -> tuple[Tensor, Tensor]:
    """Standardized measurements x, shape (569, 30), and labels y, 0 or 1, shape (569,)."""
    from sklearn.datasets import load_breast_cancer

    x, y = (torch.as_tensor(a, dtype=torch.float64) for a in load_breast_cancer(return_X_y=True))
    x = (x - x.mean(0)) / x.std(0, correction=0)
    return x.to(torch.get_default_dtype()), y.to(torch.get_default_dtype())


def model(x: Tensor, y: Tensor) -> None:
    """Intercept b, weights w of shape (30,) in one site; observations in the plate "tumour"."""
    b = pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[-1]), 1.0).to_event(1))
    # w is (D,), or (..., 1, D) where an outer plate stands to the left of "tumour".
    logits = b + (w @ x.T).reshape(*w.shape[:-2], len(y))
    with pyro.plate("tumour", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)
