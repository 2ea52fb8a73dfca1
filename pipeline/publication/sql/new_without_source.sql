-- New rows of one table that no resource has made. Ids rise: those above the highest one before are new.
SELECT count(*) FROM {table} AS row WHERE row.{own} > %(last)s
  AND NOT EXISTS (SELECT FROM {lineage} AS lineage WHERE lineage.row_id = row.{own} AND lineage.row_id > %(last)s)
