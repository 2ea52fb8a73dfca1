-- The as-of and go-live dates of every site. Those of the site that is published are parameters, never earlier than
-- what was published before: an older export does not turn the clock back. Those of the other sites are remembered in
-- metadata. Without a site all sites share the parameters.
-- makes: derived_site
DROP TABLE IF EXISTS pg_temp.derived_site;
CREATE TEMP TABLE derived_site ON COMMIT DROP AS
SELECT site.site,
       CASE WHEN %(site)s::text IS NULL THEN %(as_of)s::date
            WHEN site.site = %(site)s THEN greatest(%(as_of)s::date, known.as_of)
            ELSE coalesce(known.as_of, %(as_of)s::date) END AS as_of,
       CASE WHEN %(site)s::text IS NULL OR site.site = %(site)s THEN %(go_live)s::date
            ELSE known.go_live END AS go_live,
       %(site)s::text IS NULL OR site.site = %(site)s AS published
FROM (SELECT site FROM {etl}.site_resource_type UNION SELECT %(site)s WHERE %(site)s::text IS NOT NULL) AS site
LEFT JOIN (
    SELECT split_part(name, '/', 2) AS site,
           max(metadata_date) FILTER (WHERE split_part(name, '/', 3) = 'as_of_date') AS as_of,
           max(metadata_date) FILTER (WHERE split_part(name, '/', 3) = 'go_live_date') AS go_live
    FROM {cdm}.metadata WHERE starts_with(name, 'site/') GROUP BY 1
) AS known USING (site);
ANALYZE pg_temp.derived_site;
