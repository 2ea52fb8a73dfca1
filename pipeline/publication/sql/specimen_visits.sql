-- The visit of a specimen is that of its results, and so is the detail, where these agree.
-- reads: specimen_result
UPDATE {cdm}.specimen AS specimen SET visit_occurrence_id = fresh.visit_id, visit_detail_id = fresh.detail_id
FROM (
    SELECT specimen_id, CASE WHEN is_one_visit THEN visit_id END AS visit_id,
           CASE WHEN is_one_visit AND is_one_detail THEN detail_id END AS detail_id
    FROM (
        SELECT named.specimen_id, min(found.visit_occurrence_id) AS visit_id, min(found.visit_detail_id) AS detail_id,
               min(found.visit_occurrence_id) = max(found.visit_occurrence_id) AS is_one_visit,
               min(found.visit_detail_id) = max(found.visit_detail_id)
               AND count(found.visit_detail_id) = count(found.visit_occurrence_id) AS is_one_detail
        FROM (SELECT DISTINCT specimen_id FROM pg_temp.specimen_result) AS named
        LEFT JOIN ({results}) AS found USING (specimen_id)
        GROUP BY named.specimen_id
    ) AS results
) AS fresh
WHERE specimen.specimen_id = fresh.specimen_id
  AND (specimen.visit_occurrence_id, specimen.visit_detail_id) IS DISTINCT FROM (fresh.visit_id, fresh.detail_id)
