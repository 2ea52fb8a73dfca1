-- How many persons there are in a temporary table.
-- reads: {persons}
SELECT count(*) FROM pg_temp.{persons}
