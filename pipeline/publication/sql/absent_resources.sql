-- Resources of the site that are absent from the newest export of a group that once had them.
SELECT DISTINCT surrogate_id FROM absent_resource JOIN export_job ON export_id = last_export_id WHERE site = %(site)s
