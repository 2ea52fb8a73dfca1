-- The accounting rule: files of which not every line has exactly one outcome.
SELECT export_id, file, lines, {outcomes} AS outcomes FROM file_account
WHERE ({accounting_rule}) IS NOT TRUE
  AND (%(site)s::text IS NULL OR site = %(site)s) AND (%(export_id)s::bigint IS NULL OR export_id = %(export_id)s)
ORDER BY export_id DESC, file
