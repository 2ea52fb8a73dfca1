-- The lineage of such rows, which are gone.
-- reads: of_removed_person
DELETE FROM {lineage} AS lineage USING pg_temp.of_removed_person AS gone
WHERE lineage.surrogate_id = gone.surrogate_id
