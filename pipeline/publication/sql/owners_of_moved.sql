-- Moved events, and the person with whom they are to be: another survivor, or their own patient again.
-- reads: merged_patient affected_person
-- makes: owner_of_moved
CREATE TEMP TABLE owner_of_moved ON COMMIT DROP AS
SELECT reference.from_surrogate_id AS surrogate_id, map.row_id AS person_id
FROM reference
LEFT JOIN pg_temp.merged_patient AS merged ON merged.patient = reference.to_surrogate_id
JOIN id_map AS map ON map.cdm_table = 'person' AND map.surrogate_id = coalesce(merged.last, reference.to_surrogate_id)
JOIN {cdm}.person AS person ON person.person_id = map.row_id
WHERE reference.role = 'person_id';
INSERT INTO pg_temp.affected_person SELECT DISTINCT person_id FROM pg_temp.owner_of_moved ON CONFLICT DO NOTHING;
