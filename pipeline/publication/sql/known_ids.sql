-- Row ids of resources that are named in one table, and whether the row is there.
-- reads: named_{table}
SELECT map.surrogate_id, map.row_id, row.{own} IS NOT NULL
FROM pg_temp.named_{table} JOIN id_map AS map USING (surrogate_id)
LEFT JOIN {cdm}.{table} AS row ON row.{own} = map.row_id
WHERE map.cdm_table = '{table}'
