-- All actions of these orders that something is given from, and until when: the next later action of the order, if any.
-- reads: infusion_order
-- makes: infusion
CREATE TEMP TABLE infusion ON COMMIT DROP AS
WITH action AS (
    SELECT surrogate_id AS order_id, owner_surrogate_id AS action_id, value::jsonb AS content
    FROM pg_temp.infusion_order JOIN reference_value AS fact USING (surrogate_id) WHERE fact.name = 'infusion_action'
), moment AS (
    SELECT order_id, content->>'start' AS start, min(content->>'day') AS day FROM action GROUP BY order_id, content->>'start'
), span AS (
    SELECT order_id, start, lead(start) OVER later AS next_start, lead(day) OVER later AS next_day FROM moment
    WINDOW later AS (PARTITION BY order_id ORDER BY start)
)
SELECT action.action_id, coalesce(span.next_day, content->>'day')::date AS end_day,
       coalesce(span.next_start, span.start)::timestamp AS end_moment,
       ((content->>'an_hour')::double precision
        * extract(epoch FROM span.next_start::timestamp - span.start::timestamp)::double precision / 3600)::numeric
           AS quantity,
       CASE WHEN span.next_start IS NOT NULL THEN content->>'unit' END AS unit
FROM action JOIN span ON span.order_id = action.order_id AND span.start = content->>'start'
WHERE (content->>'is_open')::boolean;
ANALYZE pg_temp.infusion;
