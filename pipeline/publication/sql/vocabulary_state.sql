-- Of which release a site's answers are, and from which export on there are some.
SELECT vocabulary_release, vocabulary_hash, local_hash, rules_hash, publication_hash, first_export_id
FROM vocabulary_state WHERE site = %(site)s
