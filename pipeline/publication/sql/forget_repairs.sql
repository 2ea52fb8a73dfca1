-- Repairs of this export are done, whatever came of them.
DELETE FROM dead_letter_repair WHERE export_id = %(export_id)s
