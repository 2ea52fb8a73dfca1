-- For rows of one table that stay under their id.
-- makes: updated_{table}
CREATE TEMP TABLE updated_{table} ON COMMIT DROP AS SELECT * FROM {cdm}.{table} WITH NO DATA
