-- Rows that say what is not so any more.
-- reads: site_relation
DELETE FROM {cdm}.fact_relationship AS row
WHERE domain_concept_id_1 = {domain} AND domain_concept_id_2 = {domain}
  AND NOT EXISTS (SELECT FROM pg_temp.site_relation AS relation WHERE {is_site_relation})
