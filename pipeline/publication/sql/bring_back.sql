-- Moved rows of one table that are with another person than they are to be.
-- reads: owner_of_moved affected_person
INSERT INTO pg_temp.affected_person
SELECT DISTINCT row.person_id
FROM pg_temp.owner_of_moved AS owner JOIN {lineage} AS lineage USING (surrogate_id)
JOIN {cdm}.{table} AS row ON row.{own} = lineage.row_id
WHERE row.person_id <> owner.person_id
ON CONFLICT DO NOTHING;
UPDATE {cdm}.{table} AS row SET person_id = owner.person_id
FROM pg_temp.owner_of_moved AS owner JOIN {lineage} AS lineage USING (surrogate_id)
WHERE row.{own} = lineage.row_id AND row.person_id <> owner.person_id;
