-- Exports of the site in their order: those that are published, and this one.
SELECT export_id, kind FROM export_job
WHERE site = %(site)s AND (published_at IS NOT NULL OR export_id = %(export_id)s) AND transaction_time IS NOT NULL
ORDER BY transaction_time, export_id
