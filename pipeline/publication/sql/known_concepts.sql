-- Those of some concepts that the vocabulary has.
SELECT concept_id FROM {vocab}.concept WHERE concept_id = ANY(%(concepts)s)
