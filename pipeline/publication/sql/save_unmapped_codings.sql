-- Codes without a concept: new ones, and when known ones were met again.
-- reads: met_coding
INSERT INTO unmapped_coding AS known (coding_id, resource_type, element, system, code, display, text, tried, first_seen, last_seen)
SELECT coding_id, resource_type, element, system, code, display, text, tried, %(now)s, %(now)s FROM pg_temp.met_coding
ON CONFLICT (coding_id) DO UPDATE SET
    text = coalesce(known.text, excluded.text), tried = excluded.tried,
    first_seen = coalesce(known.first_seen, excluded.first_seen), last_seen = excluded.last_seen
