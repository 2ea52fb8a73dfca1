-- Roles of moved practitioners; what these and all others that moved are identified by. Each once.
-- reads: moved_target moved_stand_in
-- makes: moved_once
ANALYZE pg_temp.moved_target;
ANALYZE pg_temp.moved_stand_in;
INSERT INTO pg_temp.moved_stand_in
SELECT fact.surrogate_id FROM reference_value AS fact
JOIN (SELECT surrogate_id FROM pg_temp.moved_target UNION SELECT surrogate_id FROM pg_temp.moved_stand_in) AS moved
     ON fact.value = moved.surrogate_id::text
WHERE fact.name = %(role)s;
INSERT INTO pg_temp.moved_stand_in
SELECT fact.surrogate_id FROM reference_value AS fact
JOIN (SELECT surrogate_id FROM pg_temp.moved_target UNION SELECT surrogate_id FROM pg_temp.moved_stand_in) AS moved
     ON fact.owner_surrogate_id = moved.surrogate_id
WHERE fact.name = %(identifier)s;
CREATE TEMP TABLE moved_once ON COMMIT DROP AS SELECT DISTINCT surrogate_id FROM pg_temp.moved_stand_in;
TRUNCATE pg_temp.moved_stand_in;
INSERT INTO pg_temp.moved_stand_in TABLE pg_temp.moved_once;
ANALYZE pg_temp.moved_stand_in;
