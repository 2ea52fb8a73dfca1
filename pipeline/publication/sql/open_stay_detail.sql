-- The same for visit_detail. One Encounter may have several details (its own, one for each location), so that the fact
-- `open_stay_detail` carries as its value the start of the detail that it means, and is about the place where there is
-- one. The start is that of the detail itself, with a blank before the time; facts of earlier versions have it as FHIR
-- writes it.
-- Whose they are is noted.
-- reads: derived_as_of_person derived_site
WITH updated AS (
    UPDATE {cdm}.visit_detail AS detail
    SET visit_detail_end_date = fresh.end_date, visit_detail_end_datetime = fresh.end_datetime
    FROM (
        SELECT DISTINCT detail.visit_detail_id,
               greatest(site.as_of, detail.visit_detail_start_date) AS end_date,
               greatest(site.as_of::timestamp, detail.visit_detail_start_datetime) AS end_datetime
        FROM {etl}.reference_value AS fact
        JOIN {etl}.resource_state AS state ON state.surrogate_id = fact.owner_surrogate_id
        JOIN {etl}.site_resource_type AS kind ON kind.site_resource_type_id = state.site_resource_type_id
        JOIN pg_temp.derived_site AS site ON site.site = kind.site AND site.published
        JOIN {etl}.lineage_visit_detail AS lineage ON lineage.surrogate_id = fact.owner_surrogate_id
        JOIN {cdm}.visit_detail AS detail ON detail.visit_detail_id = lineage.row_id
        LEFT JOIN {etl}.id_map AS place ON place.surrogate_id = fact.surrogate_id AND place.cdm_table = 'care_site'
        WHERE fact.name = 'open_stay_detail' AND detail.visit_detail_concept_id = ANY(%(inpatient_visits)s)
          AND coalesce(detail.care_site_id = place.row_id, true)
          AND detail.visit_detail_start_datetime = CASE
              WHEN fact.value ~ '^[0-9-]+ [0-9:.]+$' THEN fact.value::timestamp
              WHEN fact.value ~ 'T' THEN fact.value::timestamptz AT TIME ZONE %(instance_zone)s
              WHEN fact.value ~ '^[0-9]+-[0-9]+-[0-9]+$' THEN fact.value::timestamp END
    ) AS fresh
    WHERE detail.visit_detail_id = fresh.visit_detail_id
      AND (detail.visit_detail_end_date, detail.visit_detail_end_datetime)
          IS DISTINCT FROM (fresh.end_date, fresh.end_datetime)
    RETURNING detail.person_id
)
INSERT INTO pg_temp.derived_as_of_person SELECT person_id FROM updated
