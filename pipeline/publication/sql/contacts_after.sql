-- Whose rows of one table are known by a contact after a day.
SELECT event.person_id
FROM {etl}.{lineage} AS origin JOIN {cdm}.{table} AS event ON event.{own} = origin.row_id
WHERE origin.contact_date > %(previous)s AND origin.contact_date < DATE '9999-12-31'
