-- Whether a concept is a valid Standard concept, and to which one it is mapped.
SELECT concept.standard_concept = 'S' AND concept.invalid_reason IS NULL, min(target.concept_id)
FROM {vocab}.concept AS concept
LEFT JOIN {vocab}.concept_relationship AS link ON link.concept_id_1 = concept.concept_id
     AND link.relationship_id = 'Maps to' AND link.invalid_reason IS NULL
LEFT JOIN {vocab}.concept AS target ON target.concept_id = link.concept_id_2
     AND target.standard_concept = 'S' AND target.invalid_reason IS NULL
WHERE concept.concept_id = %(concept)s GROUP BY concept.concept_id
