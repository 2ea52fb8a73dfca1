-- For the states of changed resources.
-- makes: new_state
CREATE TEMP TABLE new_state (LIKE resource_state INCLUDING DEFAULTS) ON COMMIT DROP
