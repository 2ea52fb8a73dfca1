-- Concepts of fields of the CDM by their names.
SELECT concept_name, concept_id FROM {vocab}.concept
WHERE vocabulary_id = 'CDM' AND concept_name = ANY(%(names)s) ORDER BY concept_name, concept_id
