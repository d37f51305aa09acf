"""A comparison as a folder with one page that needs no network.

It imports every room but `cli`. It gives `write_report`.
"""
