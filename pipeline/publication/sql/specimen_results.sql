-- Specimens of the affected persons, and the results that name them.
-- reads: derived_affected
-- makes: specimen_result
DROP TABLE IF EXISTS pg_temp.specimen_result;
CREATE TEMP TABLE specimen_result ON COMMIT DROP AS
SELECT own.specimen_id, own.person_id, fact.owner_surrogate_id AS result
FROM {cdm}.specimen AS own JOIN pg_temp.derived_affected USING (person_id)
LEFT JOIN ({etl}.lineage_specimen AS lineage JOIN {etl}.reference_value AS fact
           ON fact.surrogate_id = lineage.surrogate_id AND fact.name = {fact}) ON lineage.row_id = own.specimen_id;
ANALYZE pg_temp.specimen_result;
