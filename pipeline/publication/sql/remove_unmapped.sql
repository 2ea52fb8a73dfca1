-- Codes without a concept of former versions.
-- reads: former
DELETE FROM unmapped_use USING pg_temp.former AS former WHERE unmapped_use.surrogate_id = former.surrogate_id
