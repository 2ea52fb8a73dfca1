-- The group whose export this is.
SELECT group_id FROM export_job WHERE export_id = %(export_id)s AND kind = ANY(%(kinds)s)
