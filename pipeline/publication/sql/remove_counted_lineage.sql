-- The lineage of such rows, which are gone.
-- reads: counted_device
DELETE FROM {lineage} AS lineage USING pg_temp.counted_device AS device WHERE lineage.surrogate_id = device.surrogate_id
