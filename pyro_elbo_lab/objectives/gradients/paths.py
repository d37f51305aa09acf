"""The part of a gradient that flows through given tensors, by automatic differentiation."""

import torch
from torch import Tensor


def through(total: Tensor, generations: list[list[Tensor]]) -> Tensor:
    """A scalar whose gradient is the part of `total`'s that flows through given tensors.

    Args:
        total: a scalar.
        generations: tensors in the graph of `total`, sorted so that none depends on a tensor of
            its own or of a later generation.

    Returns:
        sum of z * d total / dz over the tensors, with the derivatives detached; no path counts
        twice.

    Example:
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> z = 3 * x
        >>> torch.autograd.grad(through(x * z, [[z]]), x)  # d(x z) = z dx + x dz, second part
        (tensor(6.),)
    """
    grafted = torch.zeros_like(total)
    for tensors in reversed(generations):
        live = [z for z in tensors if z.requires_grad]
        rest = total - grafted
        if live and rest.requires_grad:
            grads = torch.autograd.grad(rest, live, retain_graph=True, allow_unused=True)
            for z, grad in zip(live, grads, strict=True):
                if grad is not None:
                    grafted = grafted + (grad * z).sum()
    return grafted


def without(total: Tensor, generations: list[list[Tensor]]) -> Tensor:
    """A scalar whose gradient is the part of `total`'s that avoids given tensors."""
    return total - through(total, generations)
