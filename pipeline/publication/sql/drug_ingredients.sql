-- The ingredients of drugs.
-- reads: compared_drug
SELECT drug.concept_id, ancestor.ancestor_concept_id
FROM pg_temp.compared_drug AS drug
JOIN {vocab}.concept_ancestor AS ancestor ON ancestor.descendant_concept_id = drug.concept_id
JOIN {vocab}.concept AS concept ON concept.concept_id = ancestor.ancestor_concept_id
WHERE concept.concept_class_id = 'Ingredient' AND concept.standard_concept = 'S'
  AND concept.vocabulary_id IN ('RxNorm', 'RxNorm Extension')
