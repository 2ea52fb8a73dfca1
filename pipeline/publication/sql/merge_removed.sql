-- Rows in scope that are not among the fresh ones.
-- reads: fresh_{table} {scope}
DELETE FROM {cdm}.{table} AS row WHERE {in_scope}
AND NOT EXISTS (SELECT FROM pg_temp.fresh_{table} AS fresh WHERE {same_key})
