-- Of what vanished no line is to be replayed.
-- reads: vanished_resource
UPDATE dead_letter AS letter SET state = 'superseded', closed_at = %(now)s, closed_by_export_id = %(export_id)s
FROM pg_temp.vanished_resource AS gone
WHERE letter.surrogate_id = gone.surrogate_id AND letter.state = 'open'
