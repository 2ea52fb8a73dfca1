-- Links in one place to rows that go.
-- reads: {removed}
UPDATE {cdm}.{table} AS row SET {place_column} = NULL{unset_detail}
FROM pg_temp.{removed} AS removed
WHERE row.{column} = removed.row_id{without_detail}
