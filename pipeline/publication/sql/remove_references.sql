-- What former versions wait for and depend on.
-- reads: former
DELETE FROM reference USING pg_temp.former AS former WHERE from_surrogate_id = former.surrogate_id
