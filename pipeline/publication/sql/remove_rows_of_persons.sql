-- Rows of removed persons in one table, and their lineage; whose they were is noted.
-- reads: removed_person of_removed_person
WITH gone AS (
    DELETE FROM {lineage} AS lineage USING {cdm}.{table} AS row, pg_temp.removed_person AS person
    WHERE row.{own} = lineage.row_id AND row.person_id = person.row_id
    RETURNING lineage.surrogate_id, person.surrogate_id AS patient
)
INSERT INTO pg_temp.of_removed_person SELECT DISTINCT surrogate_id, patient FROM gone;
DELETE FROM {cdm}.{table} AS row USING pg_temp.removed_person AS person WHERE row.person_id = person.row_id;
