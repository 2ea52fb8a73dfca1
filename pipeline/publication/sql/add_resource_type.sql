-- A type of the site.
INSERT INTO site_resource_type (site, resource_type) VALUES (%(site)s, %(resource_type)s) ON CONFLICT DO NOTHING
