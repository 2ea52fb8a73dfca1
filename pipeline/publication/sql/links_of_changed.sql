-- Orders and encounters of the stored records of changed resources.
-- reads: changed
SELECT DISTINCT linked_surrogate_id FROM medication_record JOIN pg_temp.changed USING (surrogate_id)
