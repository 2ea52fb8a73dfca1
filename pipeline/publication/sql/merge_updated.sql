-- Rows with the key of a fresh one and other values.
-- reads: fresh_{table}
UPDATE {cdm}.{table} AS row SET {set_values} FROM pg_temp.fresh_{table} AS fresh
WHERE {same_key} AND ({row_values}) IS DISTINCT FROM ({fresh_values})
