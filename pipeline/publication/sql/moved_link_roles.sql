-- Their roles.
-- reads: moved_link
SELECT DISTINCT role FROM pg_temp.moved_link
