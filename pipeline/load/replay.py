"""Lines that are loaded once more although no export brought them: dead letters by hand, and the batches of a remap.

How they are landed is `pipeline.load.follow_ups`, how they are loaded `pipeline.load.load`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.settings import SiteSettings
from pipeline.load.follow_ups import ReplayLine, land_replay, land_replays, lines_of_dead_letters, site_work
from pipeline.load.load import REPLAYED, load_alone, load_in_turn
from pipeline.publication import dead_letters
from pipeline.publication.publish import PublicationReport
from pipeline.warehouse.configured_sites import refuse_missing_site
from pipeline.warehouse.runtime import Runtime

__all__ = ["publish_nothing", "replay_dead_letters", "replay_lines"]


def replay_lines(runtime: Runtime, site: SiteSettings, lines: Sequence[ReplayLine]) -> list[PublicationReport]:
    """Send lines through again, each as of its own time, then what waited for them. Errors are those of `load`."""
    with site_work(runtime, site):
        return load_in_turn(runtime, site, land_replays(runtime, site, lines), REPLAYED)


def replay_dead_letters(
    runtime: Runtime,
    site: SiteSettings,
    *,
    ids: Sequence[int] | None = None,
    code: str | None = None,
    export_id: int | None = None,
) -> list[PublicationReport]:
    """Send open dead letters of a site through the pipeline again: all, those of a code, of the export that brought them
    last, or by id; then what waited for them, or depends on what they say."""
    with site_work(runtime, site):
        with runtime.connect() as connection:
            refuse_missing_site(connection, runtime.settings, site.name)
            rejected = dead_letters.open_lines(connection, site=site.name, ids=ids, code=code, export_id=export_id)
        replays = land_replays(runtime, site, lines_of_dead_letters(runtime, rejected))
        return load_in_turn(runtime, site, replays, REPLAYED, replayed=rejected)


def publish_nothing(runtime: Runtime, site: SiteSettings) -> list[PublicationReport]:
    """An export without a line, as of the site's newest one: whatever follows from rows and settings is computed again."""
    with runtime.connect() as connection:
        row = connection.execute(
            "SELECT max(transaction_time) FROM export_job WHERE site = %s AND published_at IS NOT NULL", (site.name,)
        ).fetchone()
        if row is None or row[0] is None:
            return []
        export = land_replay(runtime, connection, site, row[0], [])
    return [load_alone(runtime, site, export)]
