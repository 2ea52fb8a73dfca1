-- Open dead letters of the site's earlier exports.
SELECT id, surrogate_id, raw_hash_high, raw_hash_low FROM dead_letter JOIN export_job AS job USING (export_id)
WHERE dead_letter.state = 'open' AND dead_letter.site = %(site)s AND export_id <> %(export_id)s
  AND job.transaction_time <= %(transaction_time)s
