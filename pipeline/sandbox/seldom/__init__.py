"""What an export has of few patients: one way each for some patients in turn, so that small worlds have every way.

The ways are those on which mappings of Epic have failed. Not here: what many resources of a kind have in common
(participants, stays, doses), which is in the module of the kind.
"""
