"""The store of what sites sent: immutable NDJSON with manifest and digests, compressed, pruned and erased by rule.

Only `reading.py` opens landed files.
"""
