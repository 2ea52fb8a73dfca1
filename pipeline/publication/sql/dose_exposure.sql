-- Daily dose of each ingredient of an exposure, where it follows from the record: quantity × strength / days.
-- Strength is the amount in one piece (tablet, capsule), or the content of one unit of the denominator where the
-- quantity is in that unit. Days are days_supply, or for an administration the days that it lasted; nothing is guessed.
-- reads: derived_affected
SELECT exposure.person_id, strength.ingredient_concept_id AS drug_concept_id, usable.unit_concept_id,
       round(exposure.quantity * usable.strength / exposure.days, 6) AS dose_value,
       exposure.first_day, exposure.last_day
FROM (
    SELECT person_id, drug_concept_id, quantity::numeric AS quantity, dose_unit_source_value,
           drug_exposure_start_date AS first_day, greatest(drug_exposure_end_date, drug_exposure_start_date) AS last_day,
           CASE WHEN days_supply > 0 THEN days_supply
                WHEN drug_type_concept_id = ANY(%(administration_types)s)
                THEN greatest(drug_exposure_end_date - drug_exposure_start_date, 0) + 1 END AS days
    FROM {cdm}.drug_exposure JOIN pg_temp.derived_affected USING (person_id)
    WHERE drug_concept_id <> 0 AND quantity > 0
) AS exposure
JOIN {vocab}.drug_strength AS strength
    ON strength.drug_concept_id = exposure.drug_concept_id AND strength.invalid_reason IS NULL
LEFT JOIN {vocab}.concept AS denominator ON denominator.concept_id = strength.denominator_unit_concept_id
CROSS JOIN LATERAL (
    SELECT strength.amount_value::numeric AS strength, strength.amount_unit_concept_id AS unit_concept_id
    WHERE strength.amount_value > 0
    UNION ALL
    SELECT strength.numerator_value::numeric / coalesce(nullif(strength.denominator_value, 0), 1)::numeric,
           strength.numerator_unit_concept_id
    WHERE strength.amount_value IS NULL AND strength.numerator_value > 0
      AND lower(exposure.dose_unit_source_value) IN (lower(denominator.concept_code), lower(denominator.concept_name))
) AS usable
WHERE exposure.days IS NOT NULL AND usable.unit_concept_id <> 0
