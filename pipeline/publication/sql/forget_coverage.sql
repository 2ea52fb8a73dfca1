-- An export that is published again is counted again, not twice.
DELETE FROM coverage WHERE export_id = %(export_id)s
