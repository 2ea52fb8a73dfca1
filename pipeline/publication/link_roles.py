"""Links from row to row: which column of which rows each role of `etl.reference` may fill, declared in one place.

A link whose target is not there waits in `etl.reference` under the role of the place that it would have filled at once:
`measurement.provider_id`. What it fills later is therefore what it would have filled at first. The roles of facts
(`medication_code`, `encounter_period` …) are not here: what uses a fact is mapped again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omop_schema.cdm import polars_schema
from omop_schema.etl import LINEAGE_TABLES
from pipeline.publication.ids import LINKS

__all__ = ["FOLLOWING", "LINK_ROLES", "NO_FACTS", "LinkRole", "Place", "Rows", "link_role", "role_names", "roles_to"]


class Rows(Enum):
    """Which of a resource's rows in a table; the value is an SQL condition on its `lineage`."""

    ALL = ""
    #: of visit_detail: the row that is the (sub-)encounter itself, and the others, which are its stays in locations
    OWN = (
        " AND EXISTS (SELECT FROM id_map AS own WHERE own.cdm_table = 'visit_detail'"
        " AND own.surrogate_id = lineage.surrogate_id AND own.row_id = lineage.row_id)"
    )
    STAYS = (
        " AND NOT EXISTS (SELECT FROM id_map AS own WHERE own.cdm_table = 'visit_detail'"
        " AND own.surrogate_id = lineage.surrogate_id AND own.row_id = lineage.row_id)"
    )


@dataclass(frozen=True)
class Place:
    """A column that a link fills, in these rows of its resource. One to a visit fills `visit_detail_id` as well."""

    table: str
    column: str
    rows: Rows = Rows.ALL


@dataclass(frozen=True)
class LinkRole:
    """A role of links: its name in `etl.reference`, the table of its targets, and the places that it fills.

    One reference speaks of all rows of its resource in a place. Where those have different targets (an encounter's stays
    in several locations) a reference cannot say which row waits: it has the role `by_row`, and the resource is mapped
    again when the target is there.
    """

    name: str
    target: str
    places: tuple[Place, ...]

    @property
    def by_row(self) -> str:
        return f"{self.name}.by_row"


def _places(table: str, column: str) -> tuple[Place, ...]:
    """An encounter is a row of visit_occurrence or, as a part of another one, of visit_detail: one role for both."""
    if table == "visit_occurrence":
        return Place(table, column), Place("visit_detail", column, Rows.OWN)
    return (Place(table, column, Rows.STAYS if table == "visit_detail" else Rows.ALL),)


#: Of another resource's rows (a visit's detail, the visit of a specimen's results): no reference of the own one fills them.
FOLLOWING = frozenset(
    (("visit_detail", "visit_occurrence_id"), ("specimen", "visit_occurrence_id"), ("specimen", "visit_detail_id"))
)


def _declared() -> dict[str, LinkRole]:
    """Every column that may be filled later. Not those of persons and addresses: these are always there, or the line is
    rejected; nor a detail's own visit, which is of the same resource, and what follows from other rows."""
    roles = [
        LinkRole(f"{table}.{column}", target, _places(table, column))
        for table in LINEAGE_TABLES
        for column, target in LINKS.items()
        if column in polars_schema(table)
        and target not in {table, "person", "location"}
        and (table, column) not in FOLLOWING
    ]
    return {role.name: role for role in roles}


#: Name → role.
LINK_ROLES = _declared()


def link_role(table: str, column: str) -> LinkRole | None:
    """The role of a column of a resource's rows in a table; None where it does not wait."""
    return LINK_ROLES.get(f"{table}.{column}")


def roles_to(*targets: str) -> list[LinkRole]:
    """The roles of links to rows of these tables."""
    return [role for role in LINK_ROLES.values() if role.target in targets]


def role_names(*targets: str) -> list[str]:
    """The names in `etl.reference` of the roles of links to rows of these tables, with those that wait by row."""
    return [name for role in roles_to(*targets) for name in (role.name, role.by_row)]


#: Roles that are no facts, and wait for no mapping: links that are filled in place, and whose events follow another person.
NO_FACTS = [*LINK_ROLES, "person_id"]
