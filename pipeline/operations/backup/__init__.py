"""Backups of a warehouse with what belongs to it: made, checked, restored.

A folder of backups holds `files/` (landed files, settings: each once, named by its SHA-256, so that a further backup adds
what is new) and for each backup a folder named by its time (UTC) with `database.dump` and `manifest.json`, written last.
Nothing here decides about rows, and no night waits for a backup.
"""
