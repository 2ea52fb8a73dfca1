"""One transaction an export: staged parts become rows, links, lineage, states and accounts.

`publish.py` says the order of the steps. Not here: how a line became a row (`transform`).
"""
