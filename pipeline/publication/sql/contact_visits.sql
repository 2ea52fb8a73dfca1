-- The visit of a row.
 LEFT JOIN {cdm}.visit_occurrence AS visit ON visit.visit_occurrence_id = event.visit_occurrence_id
