-- The site's as-of date: never earlier than that of a former publication.
-- reads: derived_site
SELECT as_of FROM pg_temp.derived_site WHERE published
