"""A program as one graph: captured, compared with eager runs, and run without Python.

It imports `programs`. It gives `compiled` for an objective in SVI, and the graphs that fits and
NUTS run on; where a graph would not give what the program gives, it says why there is none.
"""
