-- Of changed resources, in one table: sources without their row, and rows that one resource has twice.
-- reads: changed
SELECT count(*) FILTER (WHERE row.{own} IS NULL), count(*) - count(DISTINCT (surrogate_id, row_key))
FROM pg_temp.changed JOIN {lineage} AS lineage USING (surrogate_id) LEFT JOIN {table} AS row ON row.{own} = lineage.row_id
