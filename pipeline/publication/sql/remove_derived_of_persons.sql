-- Derived rows of removed persons in one table.
-- reads: removed_person
DELETE FROM {cdm}.{table} AS row USING pg_temp.removed_person AS person WHERE row.person_id = person.row_id
