-- Letters whose resource or line was accepted.
UPDATE dead_letter SET state = 'resolved', closed_at = %(now)s, closed_by_export_id = %(export_id)s,
    is_repaired = id = ANY(%(repaired)s)
WHERE id = ANY(%(ids)s)
