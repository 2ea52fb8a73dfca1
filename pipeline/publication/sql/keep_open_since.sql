-- Of a resource whose newer line is rejected as well the new letter says since when it could not be loaded.
-- reads: new_dead_letter
UPDATE pg_temp.new_dead_letter AS new SET open_since = old.open_since
FROM dead_letter AS old
WHERE old.state = 'open' AND old.site = new.site AND old.surrogate_id = new.surrogate_id
  AND old.open_since < new.open_since
