"""Estimators of gradients: pathwise, doubly reparameterized, score function, wake and sleep."""
