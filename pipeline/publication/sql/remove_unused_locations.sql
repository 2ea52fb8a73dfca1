-- Addresses that were left, and that no resource and no row has any more.
-- reads: left_location
-- makes: unused_location
CREATE TEMP TABLE unused_location ON COMMIT DROP AS
SELECT gone.row_id FROM (SELECT DISTINCT row_id FROM pg_temp.left_location) AS gone
WHERE NOT EXISTS (SELECT FROM lineage_location AS lineage WHERE lineage.row_id = gone.row_id)
  AND NOT EXISTS (SELECT FROM {cdm}.person AS person WHERE person.location_id = gone.row_id)
  AND NOT EXISTS (SELECT FROM {cdm}.care_site AS site WHERE site.location_id = gone.row_id);
DELETE FROM {cdm}.location USING pg_temp.unused_location AS gone WHERE location_id = gone.row_id;
