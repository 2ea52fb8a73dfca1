-- Rows of an entity table that links wait for, and that this export brings.
-- reads: changed
-- makes: arrived_{target}
CREATE TEMP TABLE arrived_{target} ON COMMIT DROP AS
SELECT waiting.surrogate_id, target.row_id, target.detail_id
FROM (SELECT DISTINCT to_surrogate_id AS surrogate_id FROM reference
      WHERE state = 'pending' AND role = ANY(%(roles)s)
        AND to_surrogate_id IN (SELECT surrogate_id FROM pg_temp.changed)) AS waiting
JOIN ({target_rows}) AS target USING (surrogate_id);
ANALYZE pg_temp.arrived_{target};
