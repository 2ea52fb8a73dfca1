-- The stand-ins that they name.
-- reads: moved_link
SELECT DISTINCT to_surrogate_id FROM pg_temp.moved_link
