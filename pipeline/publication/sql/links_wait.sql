-- Links in one place to rows that go wait for these to come back. A link through a stand-in follows that instead.
-- reads: {removed}
INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)
SELECT DISTINCT lineage.surrogate_id, CASE WHEN EXISTS (
           SELECT FROM {lineage} AS sibling JOIN {cdm}.{table} AS other ON other.{own} = sibling.row_id
           WHERE sibling.surrogate_id = lineage.surrogate_id
             AND other.{column} IS DISTINCT FROM row.{column}{of_other_rows})
       THEN %(by_row)s ELSE %(role)s END, removed.surrogate_id, 'pending'
FROM {cdm}.{table} AS row JOIN pg_temp.{removed} AS removed ON row.{column} = removed.row_id
JOIN {lineage} AS lineage ON lineage.row_id = row.{own}{without_detail}{of_rows}
WHERE removed.surrogate_id IS NOT NULL
  AND NOT EXISTS (SELECT FROM reference AS through WHERE through.from_surrogate_id = lineage.surrogate_id
                  AND through.state = 'resolved' AND through.role IN (%(by_row)s, %(role)s))
ON CONFLICT DO NOTHING
