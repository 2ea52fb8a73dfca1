-- Addresses that former versions had. They are rows by content, which others may share.
-- reads: former
-- makes: left_location
CREATE TEMP TABLE left_location ON COMMIT DROP AS
SELECT row_id FROM lineage_location JOIN pg_temp.former USING (surrogate_id)
