-- Stays in a location that does not say any more that it is an emergency room.
UPDATE {cdm}.visit_detail AS detail SET visit_detail_concept_id = 9201
FROM reference_value AS fact JOIN lineage_visit_detail AS lineage USING (surrogate_id)
WHERE fact.name = 'inpatient_visit' AND fact.value = '9201' AND detail.visit_detail_id = lineage.row_id
  AND detail.visit_detail_concept_id = 9203 AND NOT EXISTS (
      SELECT FROM lineage_care_site AS site JOIN reference_value AS emergency USING (surrogate_id)
      WHERE site.row_id = detail.care_site_id AND emergency.name = 'emergency_location')
