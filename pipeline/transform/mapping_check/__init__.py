"""Everything that is wrong in a folder of mappings, at once, each problem with file and line.

Reading (`mapping.mappings.read_mappings`) finds what has the wrong form. Here is what form does not show: paths, columns,
rules and concepts that do not exist or do not fit together. `check.py` says what is looked at. Not here: what the load does
with a mapping.
"""
