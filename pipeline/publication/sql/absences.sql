-- From which groups the candidates are absent, and the last export of each that had them.
-- reads: absence_candidate
SELECT absent.surrogate_id, group_id, last_export_id
FROM absent_resource AS absent JOIN pg_temp.absence_candidate USING (surrogate_id)
