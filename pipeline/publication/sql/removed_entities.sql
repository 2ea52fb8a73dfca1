-- Rows of one table whose resource makes none any more.
-- reads: former remade_{table}
-- makes: removed_{table}
CREATE TEMP TABLE removed_{table} ON COMMIT DROP AS
SELECT lineage.surrogate_id, lineage.row_id
FROM {lineage} AS lineage JOIN pg_temp.former USING (surrogate_id)
WHERE NOT EXISTS (SELECT FROM pg_temp.remade_{table} AS remade WHERE remade.surrogate_id = lineage.surrogate_id)
