-- They are mapped again now.
-- reads: recounted waiting
INSERT INTO pg_temp.waiting SELECT surrogate_id FROM pg_temp.recounted
