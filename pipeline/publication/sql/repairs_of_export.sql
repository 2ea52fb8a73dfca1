-- Repaired lines of this export, and the dead letters that they are to close.
SELECT letter_id AS id, raw_hash_high, raw_hash_low FROM dead_letter_repair WHERE export_id = %(export_id)s
