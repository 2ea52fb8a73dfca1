-- Loaded visits, not of this export, that are parts of others now.
-- reads: sub_encounter changed
SELECT child FROM pg_temp.sub_encounter JOIN lineage_visit_occurrence ON surrogate_id = child
WHERE NOT EXISTS (SELECT FROM pg_temp.changed WHERE changed.surrogate_id = child)
