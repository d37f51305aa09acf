"""Whether an approximation can be trusted: comparison with a reference, evidence from both sides,
calibration, importance weights, the noise of gradients.

It imports every room but `report` and `cli`. It gives numbers with their Monte Carlo errors, and
the verdicts that follow from them by rule.
"""
