-- Sub-encounters whose events are to be on their topmost parent's visit, and visits whose events were on a detail.
-- reads: sub_encounter changed demoted promoted
-- makes: placed unplaced
CREATE TEMP TABLE placed ON COMMIT DROP AS
SELECT detail.row_id AS detail_id, own.row_id AS own_visit_id, top.row_id AS visit_id
FROM pg_temp.sub_encounter AS child
JOIN id_map AS detail ON detail.surrogate_id = child.child AND detail.cdm_table = 'visit_detail'
LEFT JOIN id_map AS own ON own.surrogate_id = child.child AND own.cdm_table = 'visit_occurrence'
JOIN id_map AS top ON top.surrogate_id = child.top AND top.cdm_table = 'visit_occurrence'
JOIN {cdm}.visit_detail AS row ON row.visit_detail_id = detail.row_id
WHERE row.visit_occurrence_id <> top.row_id OR child.child IN (SELECT surrogate_id FROM pg_temp.changed)
   OR child.child IN (SELECT child FROM pg_temp.demoted);
CREATE TEMP TABLE unplaced ON COMMIT DROP AS
SELECT detail.row_id AS detail_id, own.row_id AS visit_id
FROM id_map AS detail
JOIN id_map AS own ON own.surrogate_id = detail.surrogate_id AND own.cdm_table = 'visit_occurrence'
JOIN {cdm}.visit_occurrence AS visit ON visit.visit_occurrence_id = own.row_id
WHERE detail.cdm_table = 'visit_detail' AND (detail.surrogate_id IN (SELECT surrogate_id FROM pg_temp.changed)
   OR detail.surrogate_id IN (SELECT child FROM pg_temp.promoted));
ANALYZE pg_temp.placed;
ANALYZE pg_temp.unplaced;
