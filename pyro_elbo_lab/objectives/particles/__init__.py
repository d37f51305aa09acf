"""Particles: which draws they share, how they are drawn, and how they are scored."""
