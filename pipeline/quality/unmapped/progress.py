"""How far the mapping of a site's codes is: sources by what was decided, rows that are covered, and the trend by night."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import psycopg

from omop_schema.etl import lineage_table_name
from pipeline.quality.unmapped.codes import Decisions, SourceKeys, State, UnmappedSource, unmapped_sources
from pipeline.quality.unmapped.codes import state_of as state_of_answers
from pipeline.transform.mapping.mappings import Mappings
from pipeline.warehouse.local_map.rows import Answer, MapSchemas, current_rows

__all__ = ["Night", "SiteProgress", "StateCount", "site_progress"]

#: In the order in which people read them.
_SHOWN: tuple[State, ...] = ("open", "approved", "no map", "ignored", "invalid target", "no name")
_NAMES: dict[State, str] = {
    "approved": "approved, wait for a remap",
    "no name": "no code, no text that may be kept",
}


@dataclass(frozen=True)
class StateCount:
    """Sources of one state, and the rows that have no concept because of them."""

    name: str
    sources: int
    rows: int


@dataclass(frozen=True)
class Night:
    """What the exports of a day loaded: rows with a code, and those of them with a concept."""

    day: date
    rows: int
    mapped: int


@dataclass(frozen=True)
class SiteProgress:
    """One site's part."""

    site: str
    #: codes and texts apart: a text has no system and no code
    counts: tuple[StateCount, ...]
    #: rows of events as they are now, and those of them whose code is not among the unmapped ones
    rows: int
    covered: int
    #: the newest first
    nights: tuple[Night, ...]
    #: sentences about answers whose target a release has taken away
    invalid: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"nights": [asdict(night) | {"day": night.day.isoformat()} for night in self.nights]}


def site_progress(
    connection: psycopg.Connection, schemas: MapSchemas, mappings: Mappings, site: str | None, nights: int
) -> list[SiteProgress]:
    """Of each site that has anything loaded, or of one. `connection` has the etl schema on its search_path."""
    answers = [row.answer for row in current_rows(connection, schemas)]
    decisions = Decisions.of(SourceKeys(mappings), answers)
    by_site: dict[str, list[UnmappedSource]] = {}
    for source in unmapped_sources(connection, site):
        by_site.setdefault(source.site, []).append(source)
    trends, rows = _nights(connection, site), _event_rows(connection, site)
    places = _event_codes(mappings)
    return [
        _of_site(
            name, by_site.get(name, []), decisions, answers, (rows.get(name, 0), places), trends.get(name, [])[:nights]
        )
        for name in sorted({*by_site, *trends})
    ]


def _of_site(
    site: str,
    sources: list[UnmappedSource],
    decisions: Decisions,
    answers: list[Answer],
    events: tuple[int, frozenset[str]],
    trend: list[Night],
) -> SiteProgress:
    """`events`: how many rows of events the site has, and the elements that hold their codes."""
    rows, places = events
    missing = sum(source.rows_in(places) for source in sources)
    return SiteProgress(
        site,
        tuple(_counts(sources, decisions, _mapped(decisions, site, sources))),
        rows,
        max(rows - missing, 0),
        tuple(trend),
        tuple(
            f"{answer.source_system} {answer.source_code or 'a text'}: {answer.target_problem}."
            for answer in answers
            if answer.site in (None, site) and answer.status == "flagged" and answer.target_problem
        ),
    )


def _counts(sources: list[UnmappedSource], decisions: Decisions, mapped: int) -> Iterable[StateCount]:
    counted: dict[tuple[State, bool], list[int]] = {}
    for source in sources:
        of_state = counted.setdefault((decisions.state_of(source), source.code is None), [0, 0])
        of_state[0] += 1
        of_state[1] += source.rows
    for state in _SHOWN:
        for is_text in (False, True):
            if (state, is_text) in counted:
                of_text = ", texts" if is_text and state != "no name" else ""
                yield StateCount(f"{_NAMES.get(state, state)}{of_text}", *counted[state, is_text])
    yield StateCount("approved, and mapped", mapped, 0)


def _mapped(decisions: Decisions, site: str, sources: list[UnmappedSource]) -> int:
    """Sources that are approved for the site and are no longer unmapped anywhere."""
    still = {decisions.keys.of(source.system, source.code, source.text) for source in sources if source.has_name}
    approved = {
        key
        for (of_site, key), found in decisions.by_source.items()
        if of_site in (None, site) and state_of_answers(found) == "approved"
    }
    return len(approved - still)


#: Tables whose rows have a code that decides what they are.
_EVENTS = (
    *("condition_occurrence", "drug_exposure", "procedure_occurrence", "device_exposure"),
    *("measurement", "observation", "specimen", "visit_occurrence"),
)


def _event_codes(mappings: Mappings) -> frozenset[str]:
    """`ResourceType.element` of the codes that decide what an event is."""
    codes = (
        f"{name}.{view.code}" for name, mapping in mappings.resources.items() for view in mapping.views if view.code
    )
    return frozenset((*codes, "Encounter.class"))


def _event_rows(connection: psycopg.Connection, site: str | None) -> dict[str, int]:
    """Rows of events by site, as they are now; nothing for a steward, who does not see whose rows they are."""
    every = " UNION ALL ".join(f"SELECT surrogate_id FROM {lineage_table_name(table)}" for table in _EVENTS)
    query = (
        f"SELECT kind.site, count(*) FROM ({every}) AS lineage JOIN resource_state USING (surrogate_id)"
        " JOIN site_resource_type AS kind USING (site_resource_type_id)"
        " WHERE %(site)s::text IS NULL OR kind.site = %(site)s GROUP BY 1"
    )
    try:
        with connection.transaction():
            return dict(connection.execute(query, {"site": site}).fetchall())
    except psycopg.errors.InsufficientPrivilege:
        return {}


_NIGHTS = """
SELECT job.site, (coalesce(job.transaction_time, publication.published_at) AT TIME ZONE 'UTC')::date AS day,
       sum((rate.value ->> 1)::bigint)::bigint, sum((rate.value ->> 0)::bigint)::bigint
FROM publication JOIN export_job AS job USING (export_id), jsonb_each(publication.mapping_rates) AS rate
WHERE %(site)s::text IS NULL OR job.site = %(site)s
GROUP BY 1, 2 ORDER BY 1, 2 DESC
"""


def _nights(connection: psycopg.Connection, site: str | None) -> dict[str, list[Night]]:
    found: dict[str, list[Night]] = {}
    for name, day, rows, mapped in connection.execute(_NIGHTS, {"site": site}):
        found.setdefault(name, []).append(Night(day, rows, mapped))
    return found
