-- Too few rows for autovacuum ever to count them. Uncounted, they are taken to be few of many sites, and joins begin
-- with all states of each type instead of the few facts that are asked about.
ANALYZE {etl}.site_resource_type
