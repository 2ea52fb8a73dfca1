-- Deaths that are not as they are to be, with their lineage.
-- reads: wrong_death
DELETE FROM {etl}.lineage_death AS own USING pg_temp.wrong_death AS wrong WHERE own.row_id = wrong.person_id;
DELETE FROM {cdm}.death AS row USING pg_temp.wrong_death AS wrong WHERE row.person_id = wrong.person_id;
