"""What finds posteriors: fits, NUTS and reference draws of others, all as ArviZ trees.

It imports `programs`, `statistics`, `objectives`, `compilation` and `figures`. It gives `fit`,
`nuts`, `posteriordb`, the conversion to DataTrees, and files that are there as a whole or not at
all.
"""
