-- Persons of the site, and those of them who have no observation period.
-- reads: derived_person
SELECT count(*), count(*) FILTER (WHERE period.person_id IS NULL)
FROM pg_temp.derived_person AS person
LEFT JOIN (SELECT DISTINCT person_id FROM {cdm}.observation_period) AS period USING (person_id)
WHERE person.in_site
