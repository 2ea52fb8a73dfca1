-- The highest id of a table; 0 where it is empty.
SELECT coalesce(max({own}), 0) FROM {table}
