-- Records of removed persons; others may count in their place.
-- reads: of_removed_person left_link
INSERT INTO pg_temp.left_link
SELECT record.linked_surrogate_id FROM medication_record AS record
JOIN pg_temp.of_removed_person AS gone USING (surrogate_id);
DELETE FROM medication_record AS record USING pg_temp.of_removed_person AS gone
WHERE record.surrogate_id = gone.surrogate_id;
