"""Codes and texts without a concept on their way to a person and back: exported for review, imported as local maps, and how
far that is.

What is unmapped is counted by the load (`etl.unmapped_code`); what was decided is `pipeline.warehouse.local_map`.
"""
