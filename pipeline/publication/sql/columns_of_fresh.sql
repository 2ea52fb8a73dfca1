-- The columns of the fresh rows of a table, in their order.
SELECT attname FROM pg_attribute
WHERE attrelid = (SELECT oid FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relname = %(table)s)
  AND attnum > 0 AND NOT attisdropped
ORDER BY attnum
