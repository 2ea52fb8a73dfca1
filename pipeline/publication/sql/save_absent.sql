-- What a group had and has not any more, with the newest of its exports that had it.
-- reads: missing_member
INSERT INTO absent_resource (surrogate_id, group_id, last_export_id)
SELECT surrogate_id, %(group)s, %(last_export_id)s FROM pg_temp.missing_member
ON CONFLICT (surrogate_id, group_id) DO UPDATE SET last_export_id = excluded.last_export_id
WHERE (SELECT (transaction_time, export_id) FROM export_job WHERE export_id = excluded.last_export_id)
    > (SELECT (transaction_time, export_id) FROM export_job WHERE export_id = absent_resource.last_export_id)
