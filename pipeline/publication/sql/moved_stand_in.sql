-- For stand-ins that stand for another row than before, and for resources that made them do so.
-- makes: moved_stand_in moved_target
CREATE TEMP TABLE moved_stand_in (surrogate_id bigint) ON COMMIT DROP;
CREATE TEMP TABLE moved_target (surrogate_id bigint) ON COMMIT DROP;
