-- Open letters of a resource whose newer line is rejected as well.
-- reads: new_dead_letter
UPDATE dead_letter AS old SET state = 'superseded', closed_at = %(now)s, closed_by_export_id = %(export_id)s
FROM pg_temp.new_dead_letter AS new
WHERE old.state = 'open' AND old.site = new.site AND old.surrogate_id = new.surrogate_id
  AND (old.raw_hash_high, old.raw_hash_low) <> (new.raw_hash_high, new.raw_hash_low)
  AND %(transaction_time)s >= (SELECT transaction_time FROM export_job AS job WHERE job.export_id = old.export_id)
