-- Facts that former versions left: kept aside, to be compared with the new ones.
-- reads: former
-- makes: former_fact
CREATE TEMP TABLE former_fact ON COMMIT DROP AS
SELECT fact.* FROM reference_value AS fact
JOIN pg_temp.former AS former ON fact.owner_surrogate_id = former.surrogate_id;
DELETE FROM reference_value USING pg_temp.former AS former WHERE owner_surrogate_id = former.surrogate_id;
