-- By ingredient. Exposures that overlap or touch are one exposed stretch; stretches follow each other within an era as
-- long as no more than the persistence window lies between them. gap_days: the days of the era on which
-- there is no exposure, first and last days counted (CDM). OHDSI's script takes lengths without the last day, and where
-- stockpiling is assumed the sum of all exposures, so that it may be negative.
-- reads: derived_affected
-- makes: fresh_drug_era
DROP TABLE IF EXISTS pg_temp.fresh_drug_era;
CREATE TEMP TABLE fresh_drug_era ON COMMIT DROP AS
WITH ingredient AS (
    SELECT drug.drug_concept_id, ancestor.ancestor_concept_id AS ingredient_concept_id
    FROM (SELECT DISTINCT drug_concept_id FROM {cdm}.drug_exposure WHERE drug_concept_id <> 0) AS drug
    JOIN {vocab}.concept_ancestor AS ancestor ON ancestor.descendant_concept_id = drug.drug_concept_id
    JOIN {vocab}.concept AS concept ON concept.concept_id = ancestor.ancestor_concept_id
    WHERE concept.concept_class_id = 'Ingredient' AND concept.standard_concept = 'S'
      AND concept.vocabulary_id IN ('RxNorm', 'RxNorm Extension')
), exposure AS (
    SELECT person_id, ingredient_concept_id, drug_exposure_start_date AS first_day,
           greatest(coalesce(drug_exposure_end_date, drug_exposure_start_date + nullif(days_supply, 0),
                             drug_exposure_start_date + 1), drug_exposure_start_date) AS last_day
    FROM {cdm}.drug_exposure JOIN pg_temp.derived_affected USING (person_id) JOIN ingredient USING (drug_concept_id)
    WHERE coalesce(days_supply, 0) >= 0
), marked AS (
    SELECT *, first_day - max(last_day) OVER (
        PARTITION BY person_id, ingredient_concept_id ORDER BY first_day, last_day
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS gap
    FROM exposure
), numbered AS (
    SELECT *, count(*) FILTER (WHERE gap > 0) OVER ordered AS stretch,
           count(*) FILTER (WHERE gap > %(persistence_days)s) OVER ordered AS era
    FROM marked
    WINDOW ordered AS (
        PARTITION BY person_id, ingredient_concept_id ORDER BY first_day, last_day ROWS UNBOUNDED PRECEDING
    )
), stretches AS (
    SELECT person_id, ingredient_concept_id, era, min(first_day) AS first_day, max(last_day) AS last_day,
           count(*) AS exposures, sum(last_day - first_day) AS supplied
    FROM numbered GROUP BY person_id, ingredient_concept_id, era, stretch
)
SELECT person_id, ingredient_concept_id AS drug_concept_id, min(first_day) AS drug_era_start_date,
       max(last_day) AS drug_era_end_date, sum(exposures)::integer AS drug_exposure_count,
       (CASE WHEN %(stockpiling)s THEN max(last_day) - min(first_day) - sum(supplied)
             WHEN %(gap_by_script)s THEN max(last_day) - min(first_day) - sum(last_day - first_day)
             ELSE max(last_day) - min(first_day) + 1 - sum(last_day - first_day + 1) END)::integer AS gap_days
FROM stretches GROUP BY person_id, ingredient_concept_id, era;
ANALYZE pg_temp.fresh_drug_era;
