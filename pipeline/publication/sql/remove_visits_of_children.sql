-- Former visits of encounters that are parts of others now.
-- reads: former child_now
DELETE FROM {cdm}.visit_occurrence AS row
USING lineage_visit_occurrence AS lineage, pg_temp.former AS former, pg_temp.child_now AS child
WHERE lineage.surrogate_id = former.surrogate_id AND child.surrogate_id = former.surrogate_id
  AND row.visit_occurrence_id = lineage.row_id
