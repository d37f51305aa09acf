"""Compiled graphs called from C: everything that rests on private names of PyTorch."""
