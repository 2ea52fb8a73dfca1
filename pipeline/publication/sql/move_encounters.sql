-- Lineage of encounters goes from one table to the other; their former rows and lineage go.
-- reads: {moved}
INSERT INTO {target_lineage} ({lineage_columns})
SELECT new.row_id, lineage.surrogate_id, lineage.row_key, lineage.export_id FROM pg_temp.{moved}
JOIN id_map AS old ON old.surrogate_id = child AND old.cdm_table = '{source}'
JOIN id_map AS new ON new.surrogate_id = child AND new.cdm_table = '{target}'
JOIN {source_lineage} AS lineage ON lineage.surrogate_id = child AND lineage.row_id = old.row_id;
DELETE FROM {cdm}.{source} AS row USING pg_temp.{moved}, id_map AS old
WHERE old.surrogate_id = child AND old.cdm_table = '{source}' AND row.{source_own} = old.row_id;
DELETE FROM {source_lineage} AS lineage USING pg_temp.{moved}, id_map AS old
WHERE old.surrogate_id = child AND old.cdm_table = '{source}' AND lineage.surrogate_id = child
  AND lineage.row_id = old.row_id;
