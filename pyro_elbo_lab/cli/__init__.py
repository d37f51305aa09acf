"""The command `elbo-lab`: model files in, reports out.

It may import every room, and nothing imports it. It gives `main`, which `pyproject.toml` names.
"""
