-- And back.
ALTER TABLE {table} ADD{named} PRIMARY KEY ({columns})
