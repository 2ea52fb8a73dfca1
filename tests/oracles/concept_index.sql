-- What the compilation of an index must give, said in SQL: temporary tables index_row and index_concept of the vocabulary
-- tables in schema {vocab}. Slower than what it checks, and nothing of it is shared with that.

-- Valid `Maps to` with a valid Standard target.
CREATE TEMPORARY TABLE direct_target ON COMMIT DROP AS
SELECT link.concept_id_1 AS via_id, target.concept_id AS target_id, target.domain_id, target.vocabulary_id
FROM {vocab}.concept_relationship AS link
JOIN {vocab}.concept AS target ON target.concept_id = link.concept_id_2
WHERE link.relationship_id = 'Maps to' AND link.invalid_reason IS NULL
  AND target.standard_concept = 'S' AND target.invalid_reason IS NULL
GROUP BY link.concept_id_1, target.concept_id, target.domain_id, target.vocabulary_id;

CREATE INDEX ON direct_target (via_id);
ANALYZE direct_target;

-- A Standard concept stands for itself, also where the row that says so is missing.
INSERT INTO direct_target
SELECT concept_id, concept_id, domain_id, vocabulary_id FROM {vocab}.concept AS own
WHERE standard_concept = 'S' AND invalid_reason IS NULL
  AND NOT EXISTS (SELECT FROM direct_target WHERE via_id = own.concept_id);

-- Each concept with a target: itself, or the concept that replaced it (in several steps if need be).
CREATE TEMPORARY TABLE mapped_source ON COMMIT DROP AS
WITH RECURSIVE chain (source_id, via_id) AS (
    SELECT link.concept_id_1, link.concept_id_2 FROM {vocab}.concept_relationship AS link
    WHERE link.relationship_id = 'Concept replaced by' AND link.invalid_reason IS NULL
      AND NOT EXISTS (SELECT FROM direct_target WHERE via_id = link.concept_id_1)
    UNION
    SELECT chain.source_id, link.concept_id_2 FROM chain
    JOIN {vocab}.concept_relationship AS link ON link.concept_id_1 = chain.via_id
    WHERE link.relationship_id = 'Concept replaced by' AND link.invalid_reason IS NULL
      AND NOT EXISTS (SELECT FROM direct_target WHERE via_id = chain.via_id)
)
SELECT source_id, via_id FROM chain
WHERE EXISTS (SELECT FROM direct_target WHERE direct_target.via_id = chain.via_id)
UNION
SELECT via_id, via_id FROM direct_target;

CREATE TEMPORARY TABLE concept_value ON COMMIT DROP AS
SELECT link.concept_id_1 AS via_id, value.concept_id AS value_id,
       row_number() OVER (PARTITION BY link.concept_id_1 ORDER BY value.concept_id) AS value_number,
       count(*) OVER (PARTITION BY link.concept_id_1) AS value_count
FROM {vocab}.concept_relationship AS link
JOIN {vocab}.concept AS value ON value.concept_id = link.concept_id_2
WHERE link.relationship_id = 'Maps to value' AND link.invalid_reason IS NULL
  AND value.standard_concept = 'S' AND value.invalid_reason IS NULL;

-- Targets that can carry a value: those whose table has value_as_concept_id; all of them where there is none.
CREATE TEMPORARY TABLE carrying_target ON COMMIT DROP AS
SELECT via_id, target_id,
       row_number() OVER (PARTITION BY via_id ORDER BY target_id) AS carrier_number,
       count(*) OVER (PARTITION BY via_id) AS carrier_count
FROM (
    SELECT via_id, target_id, domain_id IN ('Measurement', 'Observation') AS has_value_column,
           bool_or(domain_id IN ('Measurement', 'Observation')) OVER (PARTITION BY via_id) AS any_has
    FROM direct_target WHERE via_id IN (SELECT via_id FROM concept_value)
) AS candidate
WHERE has_value_column OR NOT any_has;

CREATE TEMPORARY TABLE target_value ON COMMIT DROP AS
SELECT carrying_target.via_id, carrying_target.target_id, concept_value.value_id
FROM carrying_target JOIN concept_value USING (via_id)
WHERE carrier_count <> value_count OR carrier_number = value_number;

-- The unit of a code's numbers, where the vocabulary names one.
CREATE TEMPORARY TABLE own_unit ON COMMIT DROP AS
SELECT link.concept_id_1 AS source_id, min(unit.concept_id) AS unit_id
FROM {vocab}.concept_relationship AS link
JOIN {vocab}.concept AS unit ON unit.concept_id = link.concept_id_2
WHERE link.relationship_id = 'Maps to unit' AND link.invalid_reason IS NULL
  AND unit.standard_concept = 'S' AND unit.invalid_reason IS NULL
GROUP BY link.concept_id_1 HAVING count(DISTINCT unit.concept_id) = 1;

ANALYZE direct_target;
ANALYZE mapped_source;
ANALYZE target_value;

-- Codes are used again in some vocabularies (NDC, HCPCS): the valid, then the latest concept of a code counts.
CREATE TEMPORARY TABLE index_row ON COMMIT DROP AS
WITH chosen AS (
    SELECT DISTINCT ON (vocabulary_id, concept_code)
           vocabulary_id, concept_code, concept_id, domain_id, standard_concept, invalid_reason
    FROM {vocab}.concept
    ORDER BY vocabulary_id, concept_code, invalid_reason IS NULL DESC, valid_end_date DESC, concept_id
)
SELECT chosen.vocabulary_id, chosen.concept_code, chosen.concept_id AS source_concept_id,
       chosen.domain_id AS source_domain_id, chosen.standard_concept AS source_standard_concept,
       chosen.invalid_reason AS source_invalid_reason,
       direct_target.target_id AS target_concept_id, direct_target.domain_id AS target_domain_id,
       direct_target.vocabulary_id AS target_vocabulary_id, target_value.value_id AS value_concept_id,
       own_unit.unit_id AS unit_concept_id
FROM chosen
LEFT JOIN mapped_source ON mapped_source.source_id = chosen.concept_id
LEFT JOIN direct_target USING (via_id)
LEFT JOIN target_value USING (via_id, target_id)
LEFT JOIN own_unit ON own_unit.source_id = chosen.concept_id;

CREATE TEMPORARY TABLE index_concept ON COMMIT DROP AS
SELECT concept_id, concept_name, concept.domain_id, concept.vocabulary_id, concept_class_id, standard_concept,
       invalid_reason, lowest.target_concept_id
FROM {vocab}.concept
LEFT JOIN (
    SELECT mapped_source.source_id, min(direct_target.target_id) AS target_concept_id
    FROM mapped_source JOIN direct_target USING (via_id) GROUP BY mapped_source.source_id
) AS lowest ON lowest.source_id = concept.concept_id;
