-- Whether somebody has said which patients are replaced by others.
SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'merged_patient' AND relnamespace = pg_my_temp_schema())
