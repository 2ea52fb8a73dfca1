-- Links from resource to resource that the facts of one name say.
SELECT surrogate_id, value::bigint FROM reference_value WHERE name = %(fact)s
