"""PostgreSQL: connections, the embedded server, schemas, vocabulary tables, export jobs, locks, roles.

Not here: what a publication does with rows (`publication`).
"""
