"""Resources whose last line is to be mapped again because what had taken their rows away holds no more."""

from __future__ import annotations

from typing import Any

from pipeline.publication.context import LANDED_LINE, Publication
from pipeline.publication.removed_persons import PERSON_REMOVED
from pipeline.warehouse.copying import temporary_table

__all__ = ["mapped_again"]

_LINE = f"SELECT {LANDED_LINE}"
_STATE = (
    " JOIN resource_state AS state USING (surrogate_id) JOIN site_resource_type AS kind USING (site_resource_type_id)"
)
_NOT_OF_THIS = " AND NOT EXISTS (SELECT FROM pg_temp.changed AS own WHERE own.surrogate_id = state.surrogate_id)"


def mapped_again(p: Publication) -> list[tuple[Any, ...]]:
    """Places of lines in landing (`LandedLine`). All of it follows from what the database holds, so that a process that
    ends before leaves it to the next run.

    - What had vanished, and a late export of a group holds it after all.
    - Resources of a removed person who is there again, or follows another one.
    - Patients who followed another one that is not there any more.
    """
    temporary_table(p.connection, "followed", p.merged.select("from").unique().rename({"from": "patient"}))
    is_followed = "EXISTS (SELECT FROM pg_temp.followed WHERE followed.patient = {})"
    has_row = "EXISTS (SELECT FROM lineage_person AS own WHERE own.surrogate_id = {})"
    of_patient = "waiting.to_surrogate_id"
    return p.connection.execute(
        f"{_LINE} FROM (SELECT surrogate_id FROM resource_state WHERE reason = 'returned') AS back{_STATE}"
        " WHERE kind.site = %(site)s AND state.outcome = 'excluded'"
        f" UNION {_LINE} FROM (SELECT from_surrogate_id AS surrogate_id, to_surrogate_id FROM reference"
        f" WHERE state = 'pending' AND role = %(removed)s) AS waiting{_STATE}"
        " WHERE kind.site = %(site)s AND state.outcome = 'excluded' AND state.reason = %(removed)s"
        f" AND ({has_row.format(of_patient)} OR {is_followed.format(of_patient)}){_NOT_OF_THIS}"
        f" UNION {_LINE} FROM (SELECT owner_surrogate_id AS surrogate_id FROM reference_value"
        f" WHERE name = 'replaced_by') AS follower{_STATE}"
        " WHERE kind.site = %(site)s AND kind.resource_type = 'Patient' AND state.outcome = 'loaded'"
        f" AND NOT {has_row.format('state.surrogate_id')} AND NOT {is_followed.format('state.surrogate_id')}"
        f"{_NOT_OF_THIS}",
        {"site": p.export.site, "removed": PERSON_REMOVED},
    ).fetchall()
