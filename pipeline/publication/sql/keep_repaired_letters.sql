-- A letter whose repaired line is rejected as well stays open, with that line and its reason. One line is of one letter,
-- and of none where another open letter has it already.
-- reads: new_dead_letter
WITH again AS (
    SELECT DISTINCT ON (new.resource_type, new.raw_hash_high, new.raw_hash_low) repair.letter_id, new.*
    FROM dead_letter_repair AS repair
    JOIN pg_temp.new_dead_letter AS new USING (export_id, raw_hash_high, raw_hash_low)
    WHERE repair.export_id = %(export_id)s AND NOT EXISTS (
        SELECT FROM dead_letter AS other WHERE other.state = 'open' AND other.site = new.site
          AND other.resource_type = new.resource_type AND other.raw_hash_high = new.raw_hash_high
          AND other.raw_hash_low = new.raw_hash_low)
    ORDER BY new.resource_type, new.raw_hash_high, new.raw_hash_low, repair.letter_id
), kept AS (
    UPDATE dead_letter AS letter SET {set_columns},
        resource_id = coalesce(again.resource_id, letter.resource_id),
        surrogate_id = coalesce(again.surrogate_id, letter.surrogate_id)
    FROM again WHERE letter.id = again.letter_id AND letter.state = 'open'
    RETURNING again.resource_type, again.raw_hash_high, again.raw_hash_low
)
DELETE FROM pg_temp.new_dead_letter AS new USING kept
WHERE new.resource_type = kept.resource_type AND new.raw_hash_high = kept.raw_hash_high
  AND new.raw_hash_low = kept.raw_hash_low
