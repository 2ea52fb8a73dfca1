"""Parquet snapshots of a finished warehouse: tables and partitions, rows, files, the folder and its pointer, checks."""
