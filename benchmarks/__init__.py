"""Measurements: the pipeline against its floor (`python -m benchmarks`), and views alone (`view_compiler.py`).

Nothing here asserts by the clock; what is measured is printed and written down, with the machine's load beside it.
"""
