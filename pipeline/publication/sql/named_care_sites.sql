-- Care sites of which others are parts.
SELECT DISTINCT value FROM reference_value WHERE name = 'site_part_of'
