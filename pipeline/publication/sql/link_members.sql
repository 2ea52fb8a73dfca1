-- Rows of members get the id of the panel's row, follow it, and lose it when the panel goes.
-- reads: panel_member panel_row
UPDATE {cdm}.{table} AS row SET {event_id} = panel.row_id, {event_field} = panel.field
FROM pg_temp.panel_member AS member JOIN {lineage} AS lineage ON lineage.surrogate_id = member.member
LEFT JOIN pg_temp.panel_row AS panel USING (panel)
WHERE row.{own} = lineage.row_id AND {is_own_row}
  AND (row.{event_id}, row.{event_field}) IS DISTINCT FROM (panel.row_id, panel.field)
