-- Names of concepts, and their codes, for reports.
SELECT concept_id, concept_name, concept_code FROM concept WHERE concept_id = ANY(%(ids)s)
