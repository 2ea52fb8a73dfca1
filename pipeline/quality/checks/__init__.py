"""What must always hold between landing, accounts, lineage and tables, as rules that are data: `verify`, the asset checks, a
publication before its commit and a snapshot before it is written ask the same ones.

Here belong the rules, asking them and keeping their answers. What a value should be is not asked here (`quality.deep`).
"""
