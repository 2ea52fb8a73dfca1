"""Informing people: which conditions need somebody, the outbox of messages about them, and the channels they leave by.

Rules look at `etl` and the disk (`rules.py` puts them together); they change no row of the warehouse. docs/alerts.md.
"""
