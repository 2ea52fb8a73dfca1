-- The types of the site.
SELECT resource_type, site_resource_type_id FROM site_resource_type WHERE site = %(site)s
