-- A fact of a site as the last publication left it.
SELECT value_as_string, metadata_date FROM {cdm}.metadata WHERE name = %(name)s
