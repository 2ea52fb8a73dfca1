-- The rows of such devices in one table.
-- reads: counted_device
DELETE FROM {cdm}.{table} AS row USING {lineage} AS lineage JOIN pg_temp.counted_device AS device USING (surrogate_id)
WHERE row.{own} = lineage.row_id
