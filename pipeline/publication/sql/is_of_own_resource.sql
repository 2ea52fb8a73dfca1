-- Whether a row belongs to a row of its own resource: that of a component does.
row.{event_field} = {field} AND EXISTS (SELECT FROM {event_lineage} AS of_resource
    WHERE of_resource.row_id = row.{event_id} AND of_resource.surrogate_id = lineage.surrogate_id)
