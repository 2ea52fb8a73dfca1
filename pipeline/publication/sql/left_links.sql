-- Each once.
-- reads: left_link
SELECT DISTINCT linked_surrogate_id FROM pg_temp.left_link
