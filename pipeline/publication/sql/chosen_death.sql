-- Of several deaths of a person the most reliable: that at a discharge, else the latest (Themis). It is doubted where somebody
-- met the person more than 60 days later; then, by option, there is none.
-- reads: death_candidate derived_event derived_person
-- makes: chosen_death
DROP TABLE IF EXISTS pg_temp.chosen_death;
CREATE TEMP TABLE chosen_death ON COMMIT DROP AS
SELECT chosen.*, person.drops_deaths, EXISTS (
           SELECT FROM pg_temp.derived_event AS event
           WHERE event.person_id = chosen.person_id AND event.first_day <= person.as_of
             AND event.first_day > chosen.death_date + %(doubted_after_days)s) AS is_doubted
FROM (
    SELECT DISTINCT ON (person_id) *
    FROM pg_temp.death_candidate
    ORDER BY person_id, is_discharge DESC, death_date DESC, death_datetime DESC NULLS LAST, owner_surrogate_id
) AS chosen JOIN pg_temp.derived_person AS person USING (person_id);
ANALYZE pg_temp.chosen_death;
