-- A line that was rejected before keeps its dead letter, with the moment when it was first rejected, and its raw line.
-- reads: new_dead_letter
INSERT INTO dead_letter ({columns})
SELECT DISTINCT ON (resource_type, raw_hash_high, raw_hash_low) {columns} FROM pg_temp.new_dead_letter
ORDER BY resource_type, raw_hash_high, raw_hash_low, file, line
ON CONFLICT (site, resource_type, raw_hash_high, raw_hash_low) WHERE state = 'open'
DO UPDATE SET {set_columns} WHERE dead_letter.export_id <= excluded.export_id
