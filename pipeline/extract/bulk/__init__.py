"""One export's life, from the kick-off to landed files; used alike by the commands and by Dagster.

Each function does one step, saves what it learned before the next, and can be called again after any crash:

- `open_or_adopt` writes a `requested` row and commits before the kick-off is sent, and commits the status address
  before anything else happens. It adopts a group's open export instead of starting a second one.
- `poll_once` asks for the status once. `download` fetches the files that are not complete yet.
- A `requested` row without its process is an unknown state: the kick-off may have been sent, and Epic has no way to
  look for the job. Kicking off again could start a second export, so the row ends as `failed` and the group is in its cool-down
  until its window has passed. Nothing is lost by that: exports are full, the next one holds everything.

The steps are the modules of this package; what is not HTTP is in `pipeline.warehouse.export_jobs`, what is in
`pipeline.extract`.
"""

from pipeline.extract.bulk.fetching import download, types_not_received
from pipeline.extract.bulk.folders import folder_load, ingest_folder
from pipeline.extract.bulk.kick_off import open_or_adopt
from pipeline.extract.bulk.polling import poll_once
from pipeline.extract.bulk.site_run import ExportEvent, SiteExport, export_groups, export_site
from pipeline.extract.bulk.states import new_job

__all__ = [
    "ExportEvent",
    "SiteExport",
    "download",
    "export_groups",
    "export_site",
    "folder_load",
    "ingest_folder",
    "new_job",
    "open_or_adopt",
    "poll_once",
    "types_not_received",
]
