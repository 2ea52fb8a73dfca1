-- Persons of the published site, and those named as affected, with what bounds their periods. A person of several sites has
-- the latest as-of date and the earliest go-live date of them, and the largest of their numbers.
-- reads: derived_named derived_site
-- makes: derived_person
DROP TABLE IF EXISTS pg_temp.derived_person;
CREATE TEMP TABLE derived_person ON COMMIT DROP AS
SELECT person.person_id,
       coalesce(max(site.as_of), %(as_of)s::date) AS as_of,
       CASE WHEN count(site.site) = 0 THEN %(go_live)s::date
            WHEN count(site.site) = count(site.go_live) THEN min(site.go_live) END AS go_live,
       coalesce(max(site.gap), %(period_gap_days)s::integer) AS gap,
       coalesce(max(site.tail), %(period_tail_days)s::integer) AS tail,
       coalesce(max(site.prenatal), %(period_months_before_birth)s::integer) AS prenatal,
       coalesce(bool_and(site.drops_deaths), %(drop_doubted_deaths)s::boolean) AS drops_deaths,
       %(site)s::text IS NULL OR coalesce(bool_or(site.published), false) AS in_site
FROM {cdm}.person AS person
LEFT JOIN {etl}.lineage_person AS lineage ON lineage.row_id = person.person_id
LEFT JOIN {etl}.resource_state AS state ON state.surrogate_id = lineage.surrogate_id
LEFT JOIN {etl}.site_resource_type AS kind ON kind.site_resource_type_id = state.site_resource_type_id
LEFT JOIN pg_temp.derived_site AS site ON site.site = kind.site
GROUP BY person.person_id
HAVING %(site)s::text IS NULL OR bool_or(site.published)
    OR EXISTS (SELECT FROM pg_temp.derived_named AS named WHERE named.person_id = person.person_id);
ANALYZE pg_temp.derived_person;
