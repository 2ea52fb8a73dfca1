-- What others found in notes that are not there any more.
-- reads: left_note
DELETE FROM {cdm}.note_nlp AS found USING pg_temp.left_note AS gone
WHERE found.note_id = gone.row_id AND NOT EXISTS (SELECT FROM {cdm}.note AS row WHERE row.note_id = gone.row_id)
