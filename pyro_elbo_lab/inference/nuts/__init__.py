"""NUTS on a compiled log density."""
