"""Arrays of numpy in, numbers out: mixing of chains, importance weights, distances, ranks, modes.

It imports no other room, nor Pyro or PyTorch. It gives each limit and each distance that a verdict
rests on, once.
"""
