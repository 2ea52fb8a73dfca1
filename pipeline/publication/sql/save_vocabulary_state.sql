-- Of which release a site's answers are. The first export with answers stays the first.
INSERT INTO vocabulary_state (site, vocabulary_release, vocabulary_hash, local_hash, rules_hash, publication_hash,
    first_export_id, compared_at)
VALUES (%(site)s, %(vocabulary_release)s, %(vocabulary_hash)s, %(local_hash)s, %(rules_hash)s, %(publication_hash)s,
    %(export_id)s, %(now)s)
ON CONFLICT (site) DO UPDATE SET
    (vocabulary_release, vocabulary_hash, local_hash, rules_hash, publication_hash, compared_at)
    = ROW(excluded.vocabulary_release, excluded.vocabulary_hash, excluded.local_hash, excluded.rules_hash,
          excluded.publication_hash, excluded.compared_at)
