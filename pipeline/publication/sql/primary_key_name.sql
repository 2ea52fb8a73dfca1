-- The name of a table's primary key.
SELECT conname FROM pg_constraint WHERE conrelid = %(table)s::regclass AND contype = 'p'
