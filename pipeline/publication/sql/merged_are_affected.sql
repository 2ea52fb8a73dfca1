-- Both persons of a merge are derived again.
-- reads: merged_person affected_person
INSERT INTO pg_temp.affected_person
SELECT person_id FROM pg_temp.merged_person UNION SELECT survivor_id FROM pg_temp.merged_person
ON CONFLICT DO NOTHING
