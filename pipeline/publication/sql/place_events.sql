-- Rows of one table that were linked to an encounter's other form, or to a former top of its chain.
-- reads: placed unplaced
UPDATE {cdm}.{table} AS row SET visit_occurrence_id = placed.visit_id, {detail} = placed.detail_id
FROM pg_temp.placed WHERE row.visit_occurrence_id = placed.own_visit_id AND row.{detail} IS NULL;
UPDATE {cdm}.{table} AS row SET visit_occurrence_id = placed.visit_id
FROM pg_temp.placed WHERE row.{detail} = placed.detail_id AND row.visit_occurrence_id IS DISTINCT FROM placed.visit_id;
UPDATE {cdm}.{table} AS row SET visit_occurrence_id = unplaced.visit_id, {detail} = NULL
FROM pg_temp.unplaced WHERE row.{detail} = unplaced.detail_id;
