-- Deaths that discharges of affected persons reported, and that are not the earliest any more, with their lineage.
-- reads: derived_affected fresh_death
WITH gone AS (
    DELETE FROM {etl}.lineage_death AS own
    USING {etl}.reference_value AS fact, pg_temp.derived_affected AS affected
    WHERE fact.name = 'discharge_death' AND fact.owner_surrogate_id = own.surrogate_id
      AND affected.person_id = own.row_id AND NOT EXISTS (
          SELECT FROM pg_temp.fresh_death AS fresh
          WHERE fresh.person_id = own.row_id AND fresh.owner_surrogate_id = own.surrogate_id)
    RETURNING own.row_id, split_part(fact.value, '|', 3)::integer AS type_concept_id
)
DELETE FROM {cdm}.death AS row USING gone
WHERE row.person_id = gone.row_id AND row.death_type_concept_id = gone.type_concept_id
