-- Files of a site that were published, their lines and outcomes.
SELECT count(*), coalesce(sum(lines), 0)::bigint, coalesce(sum({outcomes}), 0)::bigint
FROM file_account WHERE site = %(site)s
