-- Deaths that discharges report and that have no row yet.
FROM pg_temp.fresh_death AS fresh WHERE NOT EXISTS (
    SELECT FROM {etl}.lineage_death AS own
    WHERE own.row_id = fresh.person_id AND own.surrogate_id = fresh.owner_surrogate_id)
