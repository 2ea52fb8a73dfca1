-- Coverages without period.end are valid at least until the as-of date.
-- Whose they are is noted.
-- reads: derived_as_of_person derived_site
WITH updated AS (
    UPDATE {cdm}.payer_plan_period AS period
    SET payer_plan_period_end_date = fresh.end_date
    FROM (
        SELECT period.payer_plan_period_id, greatest(site.as_of, period.payer_plan_period_start_date) AS end_date
        FROM {etl}.reference_value AS fact
        JOIN {etl}.resource_state AS state ON state.surrogate_id = fact.owner_surrogate_id
        JOIN {etl}.site_resource_type AS kind ON kind.site_resource_type_id = state.site_resource_type_id
        JOIN pg_temp.derived_site AS site ON site.site = kind.site AND site.published
        JOIN {etl}.lineage_payer_plan_period AS lineage ON lineage.surrogate_id = fact.owner_surrogate_id
        JOIN {cdm}.payer_plan_period AS period ON period.payer_plan_period_id = lineage.row_id
        WHERE fact.name = 'open_coverage'
    ) AS fresh
    WHERE period.payer_plan_period_id = fresh.payer_plan_period_id
      AND period.payer_plan_period_end_date <> fresh.end_date
    RETURNING period.person_id
)
INSERT INTO pg_temp.derived_as_of_person SELECT person_id FROM updated
