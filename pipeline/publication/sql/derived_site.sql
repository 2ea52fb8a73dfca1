-- The dates of every site, and what its settings say of periods. Those of the site that is published are parameters, the
-- as-of date never earlier than what was published before: an older export does not turn the clock back. Those of the other
-- sites are remembered in metadata. Without a site all sites share the parameters.
-- makes: derived_site
DROP TABLE IF EXISTS pg_temp.derived_site;
CREATE TEMP TABLE derived_site ON COMMIT DROP AS
SELECT site.site,
       CASE WHEN %(site)s::text IS NULL THEN %(as_of)s::date
            WHEN site.site = %(site)s THEN greatest(%(as_of)s::date, known.as_of)
            ELSE coalesce(known.as_of, %(as_of)s::date) END AS as_of,
       CASE WHEN own.is_own THEN %(go_live)s::date ELSE known.go_live END AS go_live,
       CASE WHEN own.is_own THEN %(period_gap_days)s::integer ELSE coalesce(known.gap, 548) END AS gap,
       CASE WHEN own.is_own THEN %(period_tail_days)s::integer ELSE coalesce(known.tail, 60) END AS tail,
       CASE WHEN own.is_own THEN %(period_months_before_birth)s::integer ELSE coalesce(known.prenatal, 0) END AS prenatal,
       CASE WHEN own.is_own THEN %(drop_doubted_deaths)s::boolean ELSE coalesce(known.drops, 0) = 1 END AS drops_deaths,
       own.is_own AS published
FROM (SELECT site FROM {etl}.site_resource_type UNION SELECT %(site)s WHERE %(site)s::text IS NOT NULL) AS site
CROSS JOIN LATERAL (SELECT %(site)s::text IS NULL OR site.site = %(site)s AS is_own) AS own
LEFT JOIN (
    SELECT split_part(name, '/', 2) AS site,
           max(metadata_date) FILTER (WHERE split_part(name, '/', 3) = 'as_of_date') AS as_of,
           max(metadata_date) FILTER (WHERE split_part(name, '/', 3) = 'go_live_date') AS go_live,
           max(value_as_number) FILTER (WHERE split_part(name, '/', 3) = 'period_gap_days')::integer AS gap,
           max(value_as_number) FILTER (WHERE split_part(name, '/', 3) = 'period_tail_days')::integer AS tail,
           max(value_as_number) FILTER (WHERE split_part(name, '/', 3) = 'period_months_before_birth')::integer
               AS prenatal,
           max(value_as_number) FILTER (WHERE split_part(name, '/', 3) = 'drop_doubted_deaths')::integer AS drops
    FROM {cdm}.metadata WHERE starts_with(name, 'site/') GROUP BY 1
) AS known USING (site);
ANALYZE pg_temp.derived_site;
