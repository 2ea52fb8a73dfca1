-- The first row that is a panel's own, and the concept of the field with its id.
-- reads: panel_member
-- makes: panel_row
CREATE TEMP TABLE panel_row ON COMMIT DROP AS
SELECT DISTINCT ON (panel) panel, row_id, field FROM ({own_rows}) AS own ORDER BY panel, place, row_id;
