-- A fact of the site.
-- reads: fresh_metadata
INSERT INTO pg_temp.fresh_metadata
VALUES (0, %(type_concept)s, %(name)s, %(text)s, %(number)s, %(date)s, %(datetime)s)
