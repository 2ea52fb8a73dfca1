-- For rejected lines.
-- makes: new_letter
CREATE TEMP TABLE new_letter (LIKE dead_letter INCLUDING DEFAULTS) ON COMMIT DROP;
ALTER TABLE pg_temp.new_letter ALTER id DROP NOT NULL;
