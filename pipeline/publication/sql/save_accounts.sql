-- The accounts of all files of an export, of which a large one has thousands.
UPDATE export_file AS file
SET unchanged_by_content = own.by_content, loaded = own.loaded, unchanged = own.unchanged, superseded = own.superseded,
    excluded = own.excluded, rejected = own.rejected
FROM unnest(%(file_number)s::bigint[], %(lines)s::bigint[], %(by_content)s::bigint[], %(loaded)s::bigint[],
            %(unchanged)s::bigint[], %(superseded)s::bigint[], %(excluded)s::bigint[], %(rejected)s::bigint[])
     AS own (file_number, lines, by_content, loaded, unchanged, superseded, excluded, rejected)
WHERE file.export_id = %(export_id)s AND file.file_number = own.file_number AND file.lines = own.lines
RETURNING file.file_number
