-- Issues of former versions.
-- reads: former
DELETE FROM row_issue USING pg_temp.former AS former WHERE row_issue.surrogate_id = former.surrogate_id
