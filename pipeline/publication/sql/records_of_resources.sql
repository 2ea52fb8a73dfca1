-- All stored records of some resources.
-- reads: asked_resource
SELECT surrogate_id, precedence, link, linked_surrogate_id, cdm_table, person_surrogate_id, concept_id, start_date,
       end_date, counts::text
FROM medication_record JOIN pg_temp.asked_resource USING (surrogate_id)
