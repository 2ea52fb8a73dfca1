-- For orders and encounters of records that go with their person.
-- makes: left_link
CREATE TEMP TABLE left_link (linked_surrogate_id bigint) ON COMMIT DROP
