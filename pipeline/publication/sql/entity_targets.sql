-- Rows of an entity table to which links lead.
SELECT map.surrogate_id, map.row_id, NULL::integer AS detail_id FROM id_map AS map
JOIN {cdm}.{target} AS row ON row.{target_own} = map.row_id WHERE map.cdm_table = '{target}'
