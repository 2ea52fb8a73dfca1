-- Records of former versions.
-- reads: changed
DELETE FROM medication_record AS record USING pg_temp.changed WHERE record.surrogate_id = changed.surrogate_id
