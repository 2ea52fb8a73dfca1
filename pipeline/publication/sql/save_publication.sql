-- Run metadata (f2o-040, f2o-102). An export may be published for the second time.
INSERT INTO publication (export_id, published_at, vocabulary_release, fingerprint, cdm_version, ig_version,
    software_version, rows_inserted, rows_deleted, mapping_rates, transform_seconds, publish_seconds, vanished,
    value_checks, duplicates, vocabulary_hash)
VALUES (%(export_id)s, %(now)s, %(vocabulary_release)s, %(fingerprint)s, %(cdm_version)s, %(ig_version)s,
    %(software_version)s, %(rows_inserted)s, %(rows_deleted)s, %(mapping_rates)s, %(transform_seconds)s,
    %(publish_seconds)s, %(vanished)s, %(value_checks)s, %(duplicates)s, %(vocabulary_hash)s)
ON CONFLICT (export_id) DO UPDATE SET
    (published_at, vocabulary_release, fingerprint, software_version, rows_inserted, rows_deleted, mapping_rates,
     transform_seconds, publish_seconds, vanished, value_checks, duplicates, vocabulary_hash)
    = ROW(excluded.published_at, excluded.vocabulary_release, excluded.fingerprint, excluded.software_version,
          excluded.rows_inserted, excluded.rows_deleted, excluded.mapping_rates, excluded.transform_seconds,
          excluded.publish_seconds, excluded.vanished, excluded.value_checks, excluded.duplicates,
          excluded.vocabulary_hash)
