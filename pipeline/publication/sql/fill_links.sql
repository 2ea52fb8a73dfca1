-- Links of one role in one place, where nothing is yet.
-- reads: arrived_{target}
UPDATE {cdm}.{table} AS row SET {column} = target.row_id{set_detail}
FROM reference JOIN pg_temp.arrived_{target} AS target ON target.surrogate_id = reference.to_surrogate_id
JOIN {lineage} AS lineage ON lineage.surrogate_id = reference.from_surrogate_id
WHERE reference.state = 'pending' AND reference.role = %(role)s
  AND row.{own} = lineage.row_id AND row.{column} IS NULL{of_rows}
  AND NOT {is_mapped_again}
