-- Lineage of what former versions made in one table.
-- reads: former
DELETE FROM {lineage} AS lineage USING pg_temp.former AS former WHERE lineage.surrogate_id = former.surrogate_id
