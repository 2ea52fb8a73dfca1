-- Orders and encounters of the records of erased resources.
-- reads: erased left_link
INSERT INTO pg_temp.left_link
SELECT record.linked_surrogate_id FROM medication_record AS record JOIN pg_temp.erased USING (surrogate_id)
