-- Visits count from start to end, other events on the day on which they begin: the end of a prescription or of an
-- illness is no contact. Left out: what is of a time outside the record (problem-list onsets, history and family
-- rows), and whatever lies after the as-of date, or before the birth. Death is no event; it only ends a period.
-- reads: derived_person {period_persons}
-- makes: fresh_observation_period
DROP TABLE IF EXISTS pg_temp.fresh_observation_period;
CREATE TEMP TABLE fresh_observation_period ON COMMIT DROP AS
WITH event AS (
    SELECT person_id, visit_start_date AS first_day, visit_end_date AS last_day
    FROM {cdm}.visit_occurrence{of_period_persons}
    UNION ALL SELECT person_id, visit_detail_start_date, visit_detail_end_date
    FROM {cdm}.visit_detail{of_period_persons}
    UNION ALL SELECT person_id, condition_start_date, condition_start_date
    FROM {cdm}.condition_occurrence{of_period_persons}
    WHERE condition_type_concept_id <> ALL(%(period_excluded_condition_types)s)
    UNION ALL SELECT person_id, drug_exposure_start_date, drug_exposure_start_date
    FROM {cdm}.drug_exposure{of_period_persons}
    UNION ALL SELECT person_id, procedure_date, procedure_date
    FROM {cdm}.procedure_occurrence{of_period_persons}
    UNION ALL SELECT person_id, device_exposure_start_date, device_exposure_start_date
    FROM {cdm}.device_exposure{of_period_persons}
    UNION ALL SELECT person_id, measurement_date, measurement_date
    FROM {cdm}.measurement{of_period_persons}
    UNION ALL SELECT person_id, observation_date, observation_date
    FROM {cdm}.observation{of_period_persons}
    WHERE observation_concept_id <> ALL(%(period_excluded_observations)s)
      AND observation_type_concept_id <> ALL(%(period_excluded_observation_types)s)
    UNION ALL SELECT person_id, note_date, note_date
    FROM {cdm}.note{of_period_persons}
    UNION ALL SELECT person_id, specimen_date, specimen_date
    FROM {cdm}.specimen{of_period_persons}
), by_day AS (
    SELECT person_id, first_day, max(last_day) AS last_day FROM event GROUP BY person_id, first_day
), past AS (
    SELECT person_id, greatest(first_day, born) AS first_day, least(greatest(last_day, first_day), as_of) AS last_day
    FROM by_day JOIN pg_temp.derived_person USING (person_id)
    JOIN (
        SELECT person_id, make_date(year_of_birth, coalesce(month_of_birth, 1), coalesce(day_of_birth, 1)) AS born
        FROM {cdm}.person
    ) AS birth USING (person_id)
    WHERE first_day <= as_of AND greatest(last_day, first_day) >= born AND born <= as_of
), marked AS (
    SELECT *, first_day - max(last_day) OVER (
        PARTITION BY person_id ORDER BY first_day ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) >= %(period_gap_days)s AS after_gap
    FROM past
), numbered AS (
    SELECT *, count(*) FILTER (WHERE after_gap) OVER (
        PARTITION BY person_id ORDER BY first_day ROWS UNBOUNDED PRECEDING
    ) AS number
    FROM marked
), span AS (
    SELECT person_id, min(first_day) AS first_day, max(last_day) AS last_day FROM numbered GROUP BY person_id, number
), bounded AS (
    SELECT span.person_id, span.last_day, person.go_live,
           greatest(span.first_day, person.go_live) AS start_date,
           least(span.last_day + %(period_tail_days)s, died.on_day + %(period_tail_days)s, person.as_of) AS end_date
    FROM span
    JOIN pg_temp.derived_person AS person USING (person_id)
    LEFT JOIN (SELECT person_id, min(death_date) AS on_day FROM {cdm}.death GROUP BY person_id) AS died USING (person_id)
)
SELECT person_id, start_date AS observation_period_start_date, end_date AS observation_period_end_date,
       %(period_type)s::integer AS period_type_concept_id
FROM bounded
-- What ended before the go-live was not observed here; what begins after the death is a mistake of the source.
WHERE start_date <= end_date AND (go_live IS NULL OR last_day >= go_live);
ANALYZE pg_temp.fresh_observation_period;
