-- The types that the export was asked for; whether it was asked for all of them since ever, and reports no error. What
-- may concern whole types is tolerated by the site's own code alone: a FHIR type says too little.
SELECT resource_types, since IS NULL AND NOT EXISTS (
    SELECT FROM export_outcome AS message
    WHERE message.export_id = job.export_id AND message.weight <> 'informational'
      AND (message.weight = 'fatal' OR message.severity NOT IN ('information', 'success', 'warning'))
      AND (message.severity = 'fatal' OR (message.site_code <> ALL(%(tolerated)s)
           AND (message.weight = 'fatal' OR message.code <> ALL(%(tolerated)s))))
)
FROM export_job AS job WHERE export_id = %(export_id)s
