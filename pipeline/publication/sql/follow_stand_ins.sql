-- Links of one role in one place lead to what the stand-ins stand for now, or to nothing.
-- reads: moved_link moved_{target}
UPDATE {cdm}.{table} AS row SET {column} = target.row_id
FROM pg_temp.moved_link AS moved JOIN {lineage} AS lineage ON lineage.surrogate_id = moved.from_surrogate_id
LEFT JOIN pg_temp.moved_{target} AS target ON target.surrogate_id = moved.to_surrogate_id
WHERE moved.role = %(role)s AND row.{own} = lineage.row_id AND row.{column} IS DISTINCT FROM target.row_id{of_rows}
