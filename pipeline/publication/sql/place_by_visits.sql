-- Place of service of the site's care sites of which the source says none, or by option (fact `place_by_visits`): the setting
-- of most of their visits (Themis), of equally many the one with the smaller id; without a visit none.
UPDATE {cdm}.care_site AS care_site SET place_of_service_concept_id = fresh.concept_id
FROM (
    SELECT lineage.row_id, visits.concept_id
    FROM {etl}.reference_value AS fact
    JOIN {etl}.lineage_care_site AS lineage ON lineage.surrogate_id = fact.owner_surrogate_id
    LEFT JOIN (
        SELECT DISTINCT ON (care_site_id) care_site_id, visit_concept_id AS concept_id
        FROM {cdm}.visit_occurrence
        WHERE care_site_id IS NOT NULL AND visit_concept_id <> 0
        GROUP BY care_site_id, visit_concept_id
        ORDER BY care_site_id, count(*) DESC, visit_concept_id
    ) AS visits ON visits.care_site_id = lineage.row_id
    WHERE fact.name = 'place_by_visits'
) AS fresh
WHERE care_site.care_site_id = fresh.row_id
  AND care_site.place_of_service_concept_id IS DISTINCT FROM fresh.concept_id
