-- Numbers in metadata whose names begin alike.
SELECT name, value_as_number FROM {cdm}.metadata WHERE starts_with(name, %(prefix)s)
