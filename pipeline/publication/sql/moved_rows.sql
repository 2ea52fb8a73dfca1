-- The rows of one table for which they stand now.
-- reads: stands_for
-- makes: moved_{target}
CREATE TEMP TABLE moved_{target} ON COMMIT DROP AS
SELECT stand_in.surrogate_id, row.row_id
FROM pg_temp.stands_for AS stand_in JOIN ({target_rows}) AS row ON row.surrogate_id = stand_in.target
