-- They go.
-- reads: removed_{table}
DELETE FROM {cdm}.{table} USING pg_temp.removed_{table} AS removed WHERE {own} = removed.row_id
