-- The active release of the vocabulary: its label, and the hash of its content.
SELECT release, content_hash FROM {etl}.vocabulary_release WHERE is_current
