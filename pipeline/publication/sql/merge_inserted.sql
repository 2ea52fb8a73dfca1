-- Fresh rows whose key has no row. Sorted before the ids are drawn: the same input gives the same ids in the
-- same order.
-- reads: fresh_{table}
INSERT INTO {cdm}.{table} ({own}, {columns})
SELECT nextval('{cdm}.{sequence}'), missing.* FROM (
    SELECT {columns} FROM pg_temp.fresh_{table} AS fresh
    WHERE NOT EXISTS (SELECT FROM {cdm}.{table} AS row WHERE {same_key})
    ORDER BY {key}
) AS missing
