-- All actions of these orders that something is given from, and until when: the next later action of the order, if any.
-- reads: infusion_order
-- makes: infusion
CREATE TEMP TABLE infusion ON COMMIT DROP AS
WITH action AS (
    SELECT surrogate_id AS order_id, owner_surrogate_id AS action_id, value::jsonb AS said
    FROM pg_temp.infusion_order JOIN reference_value AS fact USING (surrogate_id) WHERE fact.name = 'infusion_action'
), moment AS (
    SELECT order_id, said->>'start' AS start, min(said->>'day') AS day FROM action GROUP BY order_id, said->>'start'
), span AS (
    SELECT order_id, start, lead(start) OVER later AS next_start, lead(day) OVER later AS next_day FROM moment
    WINDOW later AS (PARTITION BY order_id ORDER BY start)
)
SELECT action.action_id, coalesce(span.next_day, said->>'day')::date AS end_day,
       coalesce(span.next_start, span.start)::timestamp AS end_moment,
       ((said->>'an_hour')::double precision
        * extract(epoch FROM span.next_start::timestamp - span.start::timestamp)::double precision / 3600)::numeric
           AS quantity,
       CASE WHEN span.next_start IS NOT NULL THEN said->>'unit' END AS unit
FROM action JOIN span ON span.order_id = action.order_id AND span.start = said->>'start'
WHERE (said->>'is_open')::boolean;
ANALYZE pg_temp.infusion;
