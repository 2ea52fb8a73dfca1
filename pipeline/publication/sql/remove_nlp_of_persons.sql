-- What others found in the notes of removed persons.
-- reads: removed_person
DELETE FROM {cdm}.note_nlp AS found USING {cdm}.note AS row, pg_temp.removed_person AS person
WHERE found.note_id = row.note_id AND row.person_id = person.row_id
