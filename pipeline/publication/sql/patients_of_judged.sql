-- Whose the judged resources are by their own words: also where their events follow another patient.
-- reads: judged
SELECT moved.from_surrogate_id, moved.to_surrogate_id
FROM reference AS moved JOIN pg_temp.judged ON judged.surrogate_id = moved.from_surrogate_id
WHERE moved.role = 'person_id'
UNION ALL
SELECT * FROM ({patients_by_rows}) AS own
WHERE NOT EXISTS (SELECT FROM reference AS moved
                  WHERE moved.from_surrogate_id = own.surrogate_id AND moved.role = 'person_id')
