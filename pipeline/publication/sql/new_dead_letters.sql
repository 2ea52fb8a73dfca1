-- For rejected lines.
-- makes: new_dead_letter
CREATE TEMP TABLE new_dead_letter (LIKE dead_letter INCLUDING DEFAULTS) ON COMMIT DROP;
ALTER TABLE pg_temp.new_dead_letter ALTER id DROP NOT NULL;
