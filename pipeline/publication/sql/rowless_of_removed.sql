-- Records of removed persons that are counted elsewhere have no row by which they would be found.
-- reads: {patients} of_removed_person
INSERT INTO pg_temp.of_removed_person (surrogate_id, patient)
SELECT DISTINCT record.surrogate_id, removed.surrogate_id
FROM medication_record AS record JOIN pg_temp.{patients} AS removed ON removed.surrogate_id = record.person_surrogate_id
WHERE NOT record.counts
