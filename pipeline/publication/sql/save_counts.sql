-- Records that count now, or no more.
-- reads: new_count
UPDATE medication_record AS record SET counts = new.counts
FROM pg_temp.new_count AS new WHERE record.surrogate_id = new.surrogate_id AND record.cdm_table = new.cdm_table
