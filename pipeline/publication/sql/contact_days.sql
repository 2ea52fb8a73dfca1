-- Days of contact of the rows of one table: their own dates, but where these are more than some days before the contact by
-- which they are known, that day. The contact is the start of their visit, else what their lineage says. The last day that
-- there is: no day of contact is known.
SELECT event.person_id,
       CASE WHEN origin.contact_date = DATE '9999-12-31' THEN origin.contact_date
            WHEN event.{start} < {contact} - {late} THEN {contact}
            ELSE event.{start} END AS on_day
FROM {cdm}.{table} AS event{of_period_persons}
LEFT JOIN {etl}.{lineage} AS origin ON origin.row_id = event.{own} AND origin.contact_date IS NOT NULL{visits}
WHERE {counts}
