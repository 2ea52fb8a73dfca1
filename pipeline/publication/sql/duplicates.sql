-- How many facts of the affected persons, or of all, rows of two or more resources say, and how many rows too many there are.
-- Rows without a concept may be about different things.
-- reads: affected_person
SELECT count(*), coalesce(sum(resources - 1), 0)::bigint
FROM (
    SELECT count(DISTINCT lineage.surrogate_id) AS resources
    FROM {cdm}.{table} AS row JOIN {etl}.{lineage} AS lineage ON lineage.row_id = row.{own}
    WHERE row.{concept} <> 0
      AND (%(everybody)s OR row.person_id IN (SELECT person_id FROM pg_temp.affected_person))
      AND (cardinality(%(types)s::integer[]) = 0 OR row.{type} = ANY(%(types)s::integer[]))
    GROUP BY row.person_id, {same}
    HAVING count(DISTINCT lineage.surrogate_id) > 1 AND count(DISTINCT row.{type}) >= %(least_types)s
) AS fact
