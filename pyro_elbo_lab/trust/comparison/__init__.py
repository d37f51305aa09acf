"""Approximations beside a reference: distances, diagnostics and a verdict each."""
