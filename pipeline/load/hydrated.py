"""`etl.hydrated_reference`: which references were fetched one by one, and which were not there.

Functions on a connection whose search_path begins with the `etl` schema. They do not commit. What is missing and what is
known are compared as sets of surrogate ids.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import polars as pl
import psycopg

from pipeline.core.settings import DEVICE_TYPE
from pipeline.publication.landed_line import LANDED_LINE, LandedLine
from pipeline.publication.link_roles import role_names
from pipeline.publication.steps.stand_ins import ROLE
from pipeline.warehouse.copying import read_frame, temporary_table

__all__ = ["forget", "known_ids", "pending_lines", "pending_targets", "record"]

_IDS = {"surrogate_id": pl.Int64}

#: Roles of `etl.reference` whose targets are fetched by reference: rows of shared resources, and their facts.
_ROLES = [*role_names("provider", "care_site"), "medication_code", "organization_name"]
#: … and that of devices, where a site has them fetched.
_DEVICE_ROLE = "device"

_PENDING = (
    " FROM reference JOIN resource_state AS state ON state.surrogate_id = reference.from_surrogate_id"
    " JOIN site_resource_type AS kind USING (site_resource_type_id)"
    " WHERE reference.state = 'pending' AND reference.role = ANY(%s) AND kind.site = %s"
    " AND NOT reference.is_by_identifier"
    " AND NOT EXISTS (SELECT FROM resource_state AS target WHERE target.surrogate_id = reference.to_surrogate_id)"
)

#: The roles that loaded rows refer to, whose practitioners are not there.
_PENDING_ROLES = (
    " FROM reference JOIN reference_value AS fact ON fact.surrogate_id = reference.to_surrogate_id"
    f" AND fact.name = '{ROLE}' JOIN resource_state AS state ON state.surrogate_id = fact.surrogate_id"
    " JOIN site_resource_type AS kind USING (site_resource_type_id)"
    " WHERE reference.state = 'pending' AND reference.role = ANY(%s) AND kind.site = %s"
    " AND NOT EXISTS (SELECT FROM resource_state AS target WHERE target.surrogate_id = fact.value::bigint)"
)


def known_ids(
    connection: psycopg.Connection, site: str, resource_types: Collection[str], asked_before: datetime
) -> pl.DataFrame:
    """Column surrogate_id: resources of these types that need not be fetched; some may be there twice.

    Those are in the warehouse, or wait in a dead letter, or were asked for since `asked_before`. A resource that came
    by reference, longer ago than that, is not among them: only asking shows whether it has changed.
    """
    query = (
        "SELECT surrogate_id FROM resource_state AS state JOIN site_resource_type AS kind USING (site_resource_type_id)"
        " WHERE kind.site = %s AND kind.resource_type = ANY(%s) AND NOT EXISTS (SELECT FROM hydrated_reference AS asked"
        " WHERE asked.surrogate_id = state.surrogate_id AND asked.checked_at <= %s)"
        " UNION ALL SELECT surrogate_id FROM hydrated_reference WHERE site = %s AND checked_at > %s"
        " UNION ALL SELECT surrogate_id FROM dead_letter WHERE site = %s AND state = 'open' AND surrogate_id IS NOT NULL"
    )
    return read_frame(connection, query, _IDS, (site, list(resource_types), asked_before, site, asked_before, site))


def _roles(resource_types: Collection[str]) -> list[str]:
    return [*_ROLES, _DEVICE_ROLE] if DEVICE_TYPE in resource_types else _ROLES


def pending_targets(connection: psycopg.Connection, site: str, resource_types: Collection[str]) -> pl.DataFrame:
    """Column surrogate_id: what loaded rows refer to and the warehouse has never seen, for a hydration of these types."""
    roles = _roles(resource_types)
    query = (
        f"SELECT reference.to_surrogate_id{_PENDING} UNION SELECT fact.value::bigint{_PENDING_ROLES}"  # without repeats
    )
    return read_frame(connection, query, _IDS, (roles, site, roles, site))


def pending_lines(connection: psycopg.Connection, site: str, resource_types: Collection[str]) -> list[LandedLine]:
    """The landed lines that refer to `pending_targets`: they hold the literal references."""
    roles = _roles(resource_types)
    line = f"SELECT {LANDED_LINE}"
    rows = connection.execute(f"{line}{_PENDING} UNION {line}{_PENDING_ROLES}", (roles, site, roles, site)).fetchall()
    return sorted(LandedLine(*row) for row in rows)


def record(
    connection: psycopg.Connection, site: str, export_id: int, answers: pl.DataFrame, checked_at: datetime
) -> None:
    """Remember what was asked for. Columns: surrogate_id, reference (`Type/id`), state (found, missing), status."""
    if answers.is_empty():
        return
    temporary_table(connection, "asked", answers.select("surrogate_id", "reference", "state", "status"))
    connection.execute(
        "INSERT INTO hydrated_reference (surrogate_id, site, reference, state, status, checked_at, export_id)"
        " SELECT surrogate_id, %s, reference, state, status, %s, %s FROM pg_temp.asked"
        " ON CONFLICT (surrogate_id) DO UPDATE SET (state, status, checked_at, export_id)"
        " = ROW(excluded.state, excluded.status, excluded.checked_at, excluded.export_id)",
        (site, checked_at, export_id),
    )


def forget(connection: psycopg.Connection, export_id: int) -> None:
    """What came with an export that is lost is to be asked for again."""
    connection.execute("DELETE FROM hydrated_reference WHERE export_id = %s", (export_id,))
