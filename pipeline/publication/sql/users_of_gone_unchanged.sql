-- Users of what vanished do not count as changed any more, so that they are found among the dependents.
-- reads: changed user_of_gone gone_resource
DELETE FROM pg_temp.changed USING pg_temp.user_of_gone AS user_
WHERE changed.surrogate_id = user_.surrogate_id
  AND NOT EXISTS (SELECT FROM pg_temp.gone_resource AS gone WHERE gone.surrogate_id = changed.surrogate_id)
