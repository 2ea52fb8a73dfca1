-- Persons whom arriving rows name, and who have a row.
-- reads: named_person
SELECT surrogate_id FROM pg_temp.named_person JOIN id_map ON surrogate_id = person
JOIN {cdm}.person AS row ON row.person_id = row_id
WHERE cdm_table = 'person'
