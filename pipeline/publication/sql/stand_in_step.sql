-- What facts of one name say of references, one step on.
-- reads: {references}
SELECT surrogate_id, {target} FROM pg_temp.{references} JOIN reference_value AS fact USING (surrogate_id)
WHERE fact.name = %(fact)s GROUP BY surrogate_id
