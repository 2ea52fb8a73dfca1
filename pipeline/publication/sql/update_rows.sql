-- Those that differ are written.
-- reads: updated_{table}
UPDATE {cdm}.{table} AS row SET ({columns}) = ROW({new_columns})
FROM pg_temp.updated_{table} AS new
WHERE row.{own} = new.{own} AND ROW({row_columns}) IS DISTINCT FROM ROW({new_columns})
