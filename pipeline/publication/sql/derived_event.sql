-- The days on which anybody met a person: visits from start to end, other events on one day: the end of a prescription or of
-- an illness is no contact. Left out: what is of a time outside the record (problem-list onsets, history and family rows).
-- Death is no event.
-- reads: {period_persons}
-- makes: derived_event
DROP TABLE IF EXISTS pg_temp.derived_event;
CREATE TEMP TABLE derived_event ON COMMIT DROP AS
SELECT person_id, first_day, max(last_day) AS last_day
FROM (
    SELECT person_id, visit_start_date AS first_day, visit_end_date AS last_day
    FROM {cdm}.visit_occurrence{of_period_persons}
    UNION ALL SELECT person_id, visit_detail_start_date, visit_detail_end_date
    FROM {cdm}.visit_detail{of_period_persons}
    UNION ALL SELECT person_id, on_day, on_day FROM ({contact_days}) AS event
) AS day GROUP BY person_id, first_day;
ANALYZE pg_temp.derived_event;
