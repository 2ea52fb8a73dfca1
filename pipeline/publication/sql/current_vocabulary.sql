-- The release of the vocabulary.
SELECT release FROM {etl}.vocabulary_release WHERE is_current
