-- Files that the manifest names and that did not come as it says.
SELECT category, resource_type FROM export_gap WHERE export_id = %(export_id)s
