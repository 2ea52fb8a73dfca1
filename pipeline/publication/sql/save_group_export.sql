-- What an export says of its group. It may be published for the second time.
INSERT INTO group_export (export_id, site, group_id, members, complete_types, earlier_is_lost)
VALUES (%(export_id)s, %(site)s, %(group)s, %(members)s, %(complete_types)s, %(earlier_is_lost)s)
ON CONFLICT (export_id) DO UPDATE SET (members, complete_types, earlier_is_lost)
    = ROW(excluded.members, excluded.complete_types, group_export.earlier_is_lost OR excluded.earlier_is_lost)
