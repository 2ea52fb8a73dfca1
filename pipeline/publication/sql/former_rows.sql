-- Rows that former versions made in one table.
-- reads: former
SELECT surrogate_id, row_key, row_id FROM {lineage} JOIN pg_temp.former USING (surrogate_id)
