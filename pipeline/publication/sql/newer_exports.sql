-- Published exports of the site that are newer than this one.
SELECT export_id FROM export_job
WHERE site = %(site)s AND published_at IS NOT NULL AND transaction_time > %(transaction_time)s
