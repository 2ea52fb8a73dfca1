-- What had kept it from being loaded is over; that its job is not deleted on the server is not.
UPDATE export_job SET state = %(state)s, published_at = %(now)s,
    error = CASE WHEN status_url IS NOT NULL AND deleted_at IS NULL THEN error END
WHERE export_id = %(export_id)s
