-- Rows of what is given at a rate end where that ends, with the quantity given until then (Themis #108); their persons'
-- eras are computed.
-- reads: infusion affected_person
WITH ended AS (
    UPDATE {cdm}.drug_exposure AS row
    SET drug_exposure_end_date = infusion.end_day, drug_exposure_end_datetime = infusion.end_moment,
        quantity = infusion.quantity, dose_unit_source_value = infusion.unit
    FROM pg_temp.infusion AS infusion
    JOIN lineage_drug_exposure AS lineage ON lineage.surrogate_id = infusion.action_id
    WHERE row.drug_exposure_id = lineage.row_id
      AND (row.drug_exposure_end_date, row.drug_exposure_end_datetime, row.quantity, row.dose_unit_source_value)
          IS DISTINCT FROM (infusion.end_day, infusion.end_moment, infusion.quantity, infusion.unit)
    RETURNING row.person_id
)
INSERT INTO pg_temp.affected_person SELECT DISTINCT person_id FROM ended ON CONFLICT DO NOTHING
