"""A model and its guide: sites, plates, what depends on what, runs with all random states kept, and
exact sums over discrete sites.

It imports no other room. It gives the structure that objectives plan by, and the checks of
arguments and warnings that everybody uses.
"""
