-- Of a row of fact_relationship and a relation: they say the same.
row.domain_concept_id_1 = {domain} AND row.domain_concept_id_2 = {domain} AND row.fact_id_1 = relation.one
AND row.fact_id_2 = relation.other AND row.relationship_concept_id = relation.concept_id
