"""Figures by matplotlib of numbers that others have found.

It imports `statistics`. It gives every figure of comparisons, fits, evidence and calibration, all
in one look.
"""
