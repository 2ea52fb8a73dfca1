-- Published exports of the site's groups, oldest first.
SELECT export_id, own.group_id, transaction_time, members, complete_types, earlier_is_lost
FROM group_export AS own JOIN export_job USING (export_id)
WHERE own.site = %(site)s
ORDER BY transaction_time, export_id
