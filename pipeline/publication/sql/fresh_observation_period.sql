-- Periods of the days on which persons were met. What lies after the as-of date, or before the birth (by option: some months
-- before it), does not count. Death only ends a period.
-- reads: derived_person derived_event
-- makes: fresh_observation_period
DROP TABLE IF EXISTS pg_temp.fresh_observation_period;
CREATE TEMP TABLE fresh_observation_period ON COMMIT DROP AS
WITH past AS (
    SELECT person_id, greatest(first_day, known_from) AS first_day,
           least(greatest(last_day, first_day), as_of) AS last_day, gap
    FROM pg_temp.derived_event JOIN pg_temp.derived_person USING (person_id)
    JOIN (
        SELECT person_id, make_date(year_of_birth, coalesce(month_of_birth, 1), coalesce(day_of_birth, 1)) AS born
        FROM {cdm}.person
    ) AS birth USING (person_id)
    CROSS JOIN LATERAL (SELECT (born - make_interval(months => prenatal))::date AS known_from) AS bound
    WHERE first_day <= as_of AND greatest(last_day, first_day) >= known_from AND known_from <= as_of
), marked AS (
    SELECT *, first_day - max(last_day) OVER (
        PARTITION BY person_id ORDER BY first_day ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) >= gap AS after_gap
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
           least(span.last_day + person.tail, died.on_day + person.tail, person.as_of) AS end_date
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
