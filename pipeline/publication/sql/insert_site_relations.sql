-- Rows that say what is new.
-- reads: site_relation
INSERT INTO {cdm}.fact_relationship
    (domain_concept_id_1, fact_id_1, domain_concept_id_2, fact_id_2, relationship_concept_id)
SELECT {domain}, one, {domain}, other, concept_id FROM pg_temp.site_relation AS relation
WHERE NOT EXISTS (SELECT FROM {cdm}.fact_relationship AS row WHERE {is_site_relation})
ORDER BY one, other
