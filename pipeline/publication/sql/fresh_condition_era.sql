-- Occurrences of one concept follow each other within an era as long as no more than the persistence window of days
-- lies between the end of one and the start of the next. An occurrence without an end is taken to end the day after.
-- reads: derived_affected
-- makes: fresh_condition_era
DROP TABLE IF EXISTS pg_temp.fresh_condition_era;
CREATE TEMP TABLE fresh_condition_era ON COMMIT DROP AS
WITH occurrence AS (
    SELECT person_id, condition_concept_id, condition_start_date AS first_day,
           greatest(coalesce(condition_end_date, condition_start_date + 1), condition_start_date) AS last_day
    FROM {cdm}.condition_occurrence JOIN pg_temp.derived_affected USING (person_id)
    WHERE condition_concept_id <> 0
), marked AS (
    SELECT *, first_day - max(last_day) OVER (
        PARTITION BY person_id, condition_concept_id ORDER BY first_day, last_day
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) > %(persistence_days)s AS after_gap
    FROM occurrence
), numbered AS (
    SELECT *, count(*) FILTER (WHERE after_gap) OVER (
        PARTITION BY person_id, condition_concept_id ORDER BY first_day, last_day ROWS UNBOUNDED PRECEDING
    ) AS era
    FROM marked
)
SELECT person_id, condition_concept_id, min(first_day) AS condition_era_start_date,
       max(last_day) AS condition_era_end_date, count(*)::integer AS condition_occurrence_count
FROM numbered GROUP BY person_id, condition_concept_id, era;
ANALYZE pg_temp.fresh_condition_era;
