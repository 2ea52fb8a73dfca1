-- Replaced patients that are not loaded any more, and whose events are with their survivors.
-- reads: former remade_person
-- makes: removed_patient
CREATE TEMP TABLE removed_patient ON COMMIT DROP AS
SELECT former.surrogate_id FROM pg_temp.former AS former
WHERE EXISTS (SELECT FROM reference WHERE to_surrogate_id = former.surrogate_id AND role = 'person_id')
  AND NOT EXISTS (SELECT FROM pg_temp.remade_person AS remade WHERE remade.surrogate_id = former.surrogate_id)
