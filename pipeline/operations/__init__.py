"""Keeping it running: alerts, retention, backup and restore, health. Looks at `etl`, files and servers; decides nothing
about rows."""
