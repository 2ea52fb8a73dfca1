"""What is loaded under settings that have changed since: resources whose fingerprint is not that of today, and their rows.

The fingerprint of a state is that of the mappings, the vocabulary, the code and the settings that decide rows
(`pipeline.load.fingerprints.fingerprints`). Until a resource comes again in an export, or `epic-omop remap` has run, its rows say
what the settings were. Reads only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg

from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from pipeline.load.current_lines import MAPPABLE

__all__ = ["OldSettings", "SiteFingerprints", "is_old", "old_settings"]


@dataclass(frozen=True)
class SiteFingerprints:
    """The fingerprints of one site's settings today, by resource type; "" for all other types."""

    by_type: Mapping[str, int]
    #: Types that have a mapping: the lines of all others are excluded, whatever the settings.
    mapped_types: frozenset[str]

    @property
    def named(self) -> tuple[list[str], list[int]]:
        names = [name for name in self.by_type if name]
        return names, [self.by_type[name] for name in names]


@dataclass(frozen=True)
class OldSettings:
    """Resources of a site under old settings by type, and the rows of the CDM that they made."""

    resources: Mapping[str, int]
    rows: int
    #: Of the resources those whose line was rejected under the settings of today.
    rejected: int = 0

    @property
    def count(self) -> int:
        return sum(self.resources.values())


def is_old(fingerprints: SiteFingerprints) -> tuple[str, Sequence[object]]:
    """A SQL condition on `resource_state AS state` and `site_resource_type AS kind`, and its parameters."""
    names, marks = fingerprints.named
    # One hash of what is not old, instead of a question for each state.
    condition = (
        "(state.site_resource_type_id, state.fingerprint) NOT IN (SELECT own.site_resource_type_id,"
        " coalesce(mark.fingerprint, %s) FROM site_resource_type AS own LEFT JOIN unnest(%s::text[], %s::bigint[])"
        " AS mark (resource_type, fingerprint) ON mark.resource_type = own.resource_type)"
    )
    return condition, (fingerprints.by_type[""], names, marks)


def old_settings(connection: psycopg.Connection, site: str, fingerprints: SiteFingerprints) -> OldSettings:
    """How much of a site is under old settings. Scans its states once, and lineage only where some are old."""
    marks = connection.execute(
        "SELECT kind.resource_type, state.fingerprint, count(*) FROM resource_state AS state"
        f" JOIN site_resource_type AS kind USING (site_resource_type_id) WHERE kind.site = %s AND {MAPPABLE}"
        " GROUP BY kind.resource_type, state.fingerprint",
        (site,),
    ).fetchall()
    current = fingerprints.by_type
    resources: dict[str, int] = {}
    for resource_type, mark, count in marks:
        if mark != current.get(resource_type, current[""]):
            resources[resource_type] = resources.get(resource_type, 0) + count
    if not resources:
        return OldSettings({}, 0)
    by_type = dict(sorted(resources.items()))
    return OldSettings(
        by_type, _count_rows(connection, site, fingerprints), _count_rejected(connection, site, fingerprints)
    )


def _count_rejected(connection: psycopg.Connection, site: str, fingerprints: SiteFingerprints) -> int:
    condition, parameters = is_old(fingerprints)
    row = connection.execute(
        "SELECT count(DISTINCT state.surrogate_id) FROM dead_letter AS letter"
        " JOIN resource_state AS state ON state.surrogate_id = letter.surrogate_id"
        " JOIN site_resource_type AS kind USING (site_resource_type_id)"
        f" WHERE letter.state = 'open' AND kind.site = %s AND {MAPPABLE} AND {condition}",
        (site, *parameters),
    ).fetchone()
    return int(row[0]) if row else 0


def _count_rows(connection: psycopg.Connection, site: str, fingerprints: SiteFingerprints) -> int:
    condition, parameters = is_old(fingerprints)
    lineage = " UNION ALL ".join(f"SELECT surrogate_id FROM {lineage_table_name(table)}" for table in LINEAGE_TABLES)
    row = connection.execute(
        f"SELECT count(*) FROM ({lineage}) AS lineage JOIN resource_state AS state USING (surrogate_id)"
        f" JOIN site_resource_type AS kind USING (site_resource_type_id) WHERE kind.site = %s AND {MAPPABLE}"
        f" AND {condition}",
        (site, *parameters),
    ).fetchone()
    return int(row[0]) if row else 0
