-- Whose observation periods may differ from those in the table: affected persons, and where the as-of date has
-- moved on from that of the last publication, those whose last period ended there or who had events, or contacts, in the future then.
-- reads: derived_affected derived_as_of_person derived_person
-- makes: derived_period_person
DROP TABLE IF EXISTS pg_temp.derived_period_person;
CREATE TEMP TABLE derived_period_person ON COMMIT DROP AS
SELECT person_id FROM pg_temp.derived_affected
UNION SELECT person_id FROM pg_temp.derived_as_of_person
UNION SELECT period.person_id
      FROM {cdm}.observation_period AS period JOIN pg_temp.derived_person AS person USING (person_id)
      WHERE period.observation_period_end_date >= %(previous)s AND person.as_of > %(previous)s
UNION SELECT event.person_id
      FROM (
          SELECT person_id, visit_start_date AS event_date FROM {cdm}.visit_occurrence
          UNION ALL SELECT person_id, visit_detail_start_date FROM {cdm}.visit_detail
          UNION ALL SELECT person_id, condition_start_date FROM {cdm}.condition_occurrence
          UNION ALL SELECT person_id, drug_exposure_start_date FROM {cdm}.drug_exposure
          UNION ALL SELECT person_id, procedure_date FROM {cdm}.procedure_occurrence
          UNION ALL SELECT person_id, device_exposure_start_date FROM {cdm}.device_exposure
          UNION ALL SELECT person_id, measurement_date FROM {cdm}.measurement
          UNION ALL SELECT person_id, observation_date FROM {cdm}.observation
          UNION ALL SELECT person_id, note_date FROM {cdm}.note
          UNION ALL SELECT person_id, specimen_date FROM {cdm}.specimen
      ) AS event JOIN pg_temp.derived_person AS person USING (person_id)
      WHERE event.event_date > %(previous)s AND person.as_of > %(previous)s
UNION SELECT event.person_id
      FROM ({contacts_after}) AS event JOIN pg_temp.derived_person AS person USING (person_id)
      WHERE person.as_of > %(previous)s;
ANALYZE pg_temp.derived_period_person;
