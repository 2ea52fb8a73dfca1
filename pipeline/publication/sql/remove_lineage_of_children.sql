-- Their lineage.
-- reads: former child_now
DELETE FROM lineage_visit_occurrence AS lineage USING pg_temp.former AS former, pg_temp.child_now AS child
WHERE lineage.surrogate_id = former.surrogate_id AND child.surrogate_id = former.surrogate_id
