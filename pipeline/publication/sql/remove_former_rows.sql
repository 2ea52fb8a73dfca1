-- They go.
-- reads: former
DELETE FROM {cdm}.{table} AS row USING {lineage} AS lineage, pg_temp.former AS former
WHERE lineage.surrogate_id = former.surrogate_id AND row.{own} = lineage.row_id
