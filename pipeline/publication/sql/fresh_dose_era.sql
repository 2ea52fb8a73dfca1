-- A stretch of time at one daily dose of one ingredient, with the persistence window of drug_era.
-- reads: derived_affected
-- makes: fresh_dose_era
DROP TABLE IF EXISTS pg_temp.fresh_dose_era;
CREATE TEMP TABLE fresh_dose_era ON COMMIT DROP AS
WITH marked AS (
    SELECT *, first_day - max(last_day) OVER (
        PARTITION BY person_id, drug_concept_id, unit_concept_id, dose_value ORDER BY first_day, last_day
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) > %(persistence_days)s AS after_gap
    FROM ({dose_exposure}) AS exposure
), numbered AS (
    SELECT *, count(*) FILTER (WHERE after_gap) OVER (
        PARTITION BY person_id, drug_concept_id, unit_concept_id, dose_value ORDER BY first_day, last_day
        ROWS UNBOUNDED PRECEDING
    ) AS era
    FROM marked
)
SELECT person_id, drug_concept_id, unit_concept_id, dose_value, min(first_day) AS dose_era_start_date,
       max(last_day) AS dose_era_end_date
FROM numbered WHERE dose_value > 0
GROUP BY person_id, drug_concept_id, unit_concept_id, dose_value, era;
ANALYZE pg_temp.fresh_dose_era;
