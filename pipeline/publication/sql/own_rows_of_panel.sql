-- Rows of one table that are a panel's own, for panel_rows.
-- reads: panel_member
SELECT lineage.surrogate_id AS panel, {place} AS place, row.{own} AS row_id, {field} AS field
FROM pg_temp.panel_member AS member JOIN {lineage} AS lineage ON lineage.surrogate_id = member.panel
JOIN {cdm}.{table} AS row ON row.{own} = lineage.row_id
WHERE {is_own_row}
