-- Stored records of some orders and encounters.
-- reads: asked_link
SELECT surrogate_id, precedence, link, linked_surrogate_id, cdm_table, person_surrogate_id, concept_id, start_date,
       end_date, counts::text
FROM medication_record JOIN pg_temp.asked_link USING (linked_surrogate_id)
WHERE precedence = ANY(%(precedences)s::smallint[])
