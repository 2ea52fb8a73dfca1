-- Rows of one table that belong to a row of another table, of the same resource.
-- reads: event_link
UPDATE {cdm}.{table} AS row SET {event_id} = event.row_id, {event_field} = coalesce((
    SELECT concept_id FROM {vocab}.concept
    WHERE vocabulary_id = 'CDM' AND concept_name = '{event_table}.{event_own}'), 0)
FROM pg_temp.event_link AS link JOIN {lineage} AS own USING (surrogate_id, row_key)
JOIN {event_lineage} AS event ON event.surrogate_id = link.surrogate_id AND event.row_key = link.event_row_key
WHERE link.cdm_table = '{table}' AND link.event_table = '{event_table}' AND row.{own} = own.row_id
