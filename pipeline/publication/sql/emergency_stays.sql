-- Stays in a location that says that it is an emergency room; 9201 becomes 262 for a stay with an emergency part
-- (specification, "Encounter"), and back when that goes.
UPDATE {cdm}.visit_detail AS detail SET visit_detail_concept_id = 9203
FROM reference_value AS fact JOIN lineage_care_site AS site USING (surrogate_id)
WHERE fact.name = 'emergency_location' AND detail.care_site_id = site.row_id AND detail.visit_detail_concept_id = 9201;
UPDATE {cdm}.visit_occurrence AS visit SET visit_concept_id = current.concept_id
FROM (
    SELECT lineage.row_id, CASE WHEN EXISTS (
               SELECT FROM {cdm}.visit_detail AS detail
               WHERE detail.visit_occurrence_id = lineage.row_id AND detail.visit_detail_concept_id = 9203)
           THEN 262 ELSE 9201 END AS concept_id
    FROM reference_value AS fact JOIN lineage_visit_occurrence AS lineage ON lineage.surrogate_id = fact.surrogate_id
    WHERE fact.name = 'inpatient_visit' AND fact.value = '9201'
) AS current
WHERE visit.visit_occurrence_id = current.row_id AND visit.visit_concept_id IN (9201, 262)
  AND visit.visit_concept_id <> current.concept_id;
