"""A landed export on its way into the warehouse: comparison, workers, facts, publication, and what follows from it.

Replay, remap, hydration and pruning are here as well. Not here: what turns a line into rows (`transform`), what
commits (`publication`).
"""
