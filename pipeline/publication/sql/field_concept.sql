-- The concept of the field with a table's row ids.
coalesce((SELECT concept_id FROM {vocab}.concept
    WHERE vocabulary_id = 'CDM' AND concept_name = '{table}.{own}'), 0)
