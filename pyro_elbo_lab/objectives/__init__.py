"""Losses for `pyro.infer.SVI`: bounds of log-weights, and what it takes to optimize them.

It imports `programs`. It gives the named objectives (`lower_bounds`, `covering`, `analytic_kl`,
`annealed`), each a bound with an estimator of its gradient and a layout of its particles.
"""
