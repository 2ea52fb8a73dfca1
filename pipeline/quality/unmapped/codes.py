"""What is unmapped, one item a source (site, system, and code or text), with what people have decided about it so far."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

import psycopg

from pipeline.fhir.system_name import plain_name
from pipeline.transform.concepts.code_sets import TEXT_VOCABULARY
from pipeline.transform.concepts.local_rows import text_key
from pipeline.transform.mapping.mappings import Mappings
from pipeline.warehouse.local_map.rows import Answer

__all__ = ["Decisions", "SourceKey", "SourceKeys", "State", "UnmappedSource", "unmapped_sources"]

#: open: nobody has decided; approved: the next load maps it; no map: reviewed, there is none; invalid target: the release
#: took it away; no name: neither a code nor a text that may be shown says what it is.
State = Literal["open", "approved", "no map", "ignored", "invalid target", "no name"]

#: What spellings of one source have in common: system, and code or text.
SourceKey: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class UnmappedSource:
    """A code or text of a site without a concept, wherever it stands."""

    site: str
    #: "" of a code without a system, `text` of a text
    system: str
    code: str | None
    text: str | None
    #: the display of the code, as one of its resources has it
    name: str | None
    rows: int
    #: `ResourceType.element`
    places: tuple[str, ...]
    first_seen: datetime | None
    last_seen: datetime | None
    #: what it was looked up in
    tried: str | None
    #: of `rows`, those in each of `places`
    rows_of_places: tuple[int, ...] = ()

    def rows_in(self, places: Collection[str]) -> int:
        """The rows in some of its places."""
        return sum(rows for place, rows in zip(self.places, self.rows_of_places, strict=True) if place in places)

    @property
    def has_name(self) -> bool:
        return self.code is not None or self.text is not None


@dataclass(frozen=True)
class SourceKeys:
    """Keys of sources, by the code systems of mappings."""

    mappings: Mappings

    def vocabulary(self, system: str) -> str:
        """What the resolver looks codes of the system up in."""
        canonical = self.mappings.systems.canonical(system)
        return self.mappings.code_systems.get(canonical, canonical)

    def of(self, system: str, code: str | None, text: str | None) -> SourceKey:
        if code is None:
            return TEXT_VOCABULARY, text_key(text or "")
        vocabulary = self.vocabulary(system)
        return plain_name(vocabulary), self.mappings.code_forms.customary(vocabulary, code)

    def of_answer(self, answer: Answer) -> SourceKey:
        return self.of(answer.source_system, answer.source_code, answer.source_text)


@dataclass(frozen=True)
class Decisions:
    """What people decided, by source and site; None is for all sites."""

    keys: SourceKeys
    by_source: Mapping[tuple[str | None, SourceKey], tuple[Answer, ...]]

    @classmethod
    def of(cls, keys: SourceKeys, answers: Iterable[Answer]) -> Decisions:
        found: dict[tuple[str | None, SourceKey], list[Answer]] = {}
        for answer in answers:
            found.setdefault((answer.site, keys.of_answer(answer)), []).append(answer)
        return cls(keys, {key: tuple(of_key) for key, of_key in found.items()})

    def about(self, site: str | None, key: SourceKey) -> tuple[Answer, ...]:
        """A site's own answers stand in place of those of all sites."""
        return self.by_source.get((site, key)) or self.by_source.get((None, key), ())

    def state_of(self, source: UnmappedSource) -> State:
        if not source.has_name:
            return "no name"
        return state_of(self.about(source.site, self.keys.of(source.system, source.code, source.text)))


def state_of(answers: Iterable[Answer]) -> State:
    """What the answers about one source amount to."""
    answers = tuple(answers)
    if any(answer.status == "approved" and answer.target_concept_id for answer in answers):
        return "approved"
    tests: tuple[tuple[State, Callable[[Answer], bool]], ...] = (
        ("no map", lambda answer: answer.is_no_map),
        ("invalid target", lambda answer: answer.status == "flagged" and answer.target_problem is not None),
        ("ignored", lambda answer: answer.status == "ignored"),
    )
    return next((state for state, holds in tests if any(map(holds, answers))), "open")


_SOURCES = """
WITH placed AS (
    SELECT site, coalesce(system, CASE WHEN code IS NULL THEN %(text)s ELSE '' END) AS system, code,
           CASE WHEN code IS NULL THEN coalesce(text, display) END AS text, resource_type || '.' || element AS place,
           CASE WHEN code IS NOT NULL THEN max(coalesce(display, text)) END AS name, sum(count)::bigint AS rows,
           min(first_seen) AS first_seen, max(last_seen) AS last_seen, max(tried) AS tried
    FROM unmapped_code
    WHERE %(site)s::text IS NULL OR site = %(site)s
    GROUP BY 1, 2, 3, 4, 5
)
SELECT site, system, code, text, max(name), sum(rows)::bigint, array_agg(place ORDER BY place),
       array_agg(rows ORDER BY place), min(first_seen), max(last_seen), max(tried)
FROM placed GROUP BY 1, 2, 3, 4 ORDER BY 6 DESC, 1, 2, 3, 4
"""


def unmapped_sources(connection: psycopg.Connection, site: str | None = None) -> list[UnmappedSource]:
    """The most frequent first; texts only as far as sites' allow-lists let them be kept. `connection` has the etl schema on
    its search_path."""
    rows = connection.execute(_SOURCES, {"site": site, "text": TEXT_VOCABULARY}).fetchall()
    return [
        UnmappedSource(site, system, code, text, name, count, tuple(places), first, last, tried, tuple(counts))
        for site, system, code, text, name, count, places, counts, first, last, tried in rows
    ]
