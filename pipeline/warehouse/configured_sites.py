"""Sites that are missing from sites.yaml although their time zone and mapping stood there: refused, never guessed.

A site that only folders were ever loaded under needs no entry. It is recognised by what the database knows: an entry
when something of it was loaded, or exports that only a site with an entry can have had.
"""

from __future__ import annotations

import psycopg

from omop_schema.exports import ExportKind
from pipeline.core.errors import ConfigurationError
from pipeline.core.settings import Settings

__all__ = ["note_configured_site", "refuse_missing_site"]

#: Kinds of exports that are asked for at the site's server, which stands in sites.yaml.
_ASKED_FOR = (ExportKind.BULK, ExportKind.CRAWL, ExportKind.HYDRATION)


def note_configured_site(connection: psycopg.Connection, settings: Settings, site: str) -> None:
    """Remember that the site has an entry, if it has one. Does not commit."""
    if site in settings.sites:
        connection.execute("INSERT INTO configured_site (site) VALUES (%s) ON CONFLICT DO NOTHING", (site,))


def refuse_missing_site(connection: psycopg.Connection, settings: Settings, site: str) -> None:
    """Raises ConfigurationError for a site without an entry that had one. `connection` has etl on its search_path."""
    if site in settings.sites:
        return
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM configured_site WHERE site = %s)"
        " OR EXISTS (SELECT FROM export_job WHERE site = %s AND kind = ANY(%s))",
        (site, site, list(_ASKED_FOR)),
    ).fetchone()
    if row and row[0]:
        raise ConfigurationError(
            f"Site {site!r} is missing from {settings.sites_file}, and what is loaded of it was loaded by an entry there:"
            " its time zone and mapping would be other ones.",
            "Put its entry back, or correct the name. For a site that is loaded from folders alone, `time_zone` and"
            " `mapping` are enough.",
        )
