-- What others found in notes that go because their patient was replaced.
-- reads: of_removed_person
DELETE FROM {cdm}.note_nlp AS found
USING lineage_note AS lineage JOIN pg_temp.of_removed_person AS gone USING (surrogate_id)
WHERE found.note_id = lineage.row_id
