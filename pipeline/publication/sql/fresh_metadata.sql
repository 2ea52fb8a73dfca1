-- For the facts of the site.
-- makes: fresh_metadata
DROP TABLE IF EXISTS pg_temp.fresh_metadata;
CREATE TEMP TABLE fresh_metadata ON COMMIT DROP AS
SELECT metadata_concept_id, metadata_type_concept_id, name, value_as_string, value_as_number, metadata_date,
       metadata_datetime
FROM {cdm}.metadata WITH NO DATA;
