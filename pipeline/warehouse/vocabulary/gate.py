"""Whether a release that was loaded may become the active one: what speaks against it, and what is worth a warning.

Only counts of whole vocabularies are looked at here; what becomes of single codes is `diff`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from omop_schema import cdm
from omop_schema.versions import CdmVersion
from pipeline.warehouse.vocabulary.carried import FIRST_CUSTOM_CONCEPT
from pipeline.warehouse.vocabulary.download import VocabularyDownload, release_date
from pipeline.warehouse.vocabulary.releases import VocabularyRelease

__all__ = ["ReleaseCounts", "count_release", "counts_of", "fallen_tables", "older_than_active", "reasons_against"]

#: A vocabulary may lose this share of its concepts, or of its `Maps to`, without a question.
_MOST_LOST = 0.05

#: Relationships without one of their concepts, of all: what full downloads were seen to have by themselves.
_MOST_DANGLING = 0.001


@dataclass(frozen=True)
class ReleaseCounts:
    """vocabulary_id → concepts, maps_to and version; and the relationships that lack one of their concepts."""

    vocabularies: Mapping[str, Mapping[str, Any]]
    concepts: int
    relationships: int
    dangling: int


def count_release(connection: psycopg.Connection, schema: str, versions: Mapping[str, str]) -> ReleaseCounts:
    """Of the tables in a schema, without custom concepts. One pass over the relationships."""
    concepts: dict[str, int] = dict(
        connection.execute(
            sql.SQL("SELECT vocabulary_id, count(*) FROM {} WHERE concept_id < %s GROUP BY 1").format(
                sql.Identifier(schema, "concept")
            ),
            (FIRST_CUSTOM_CONCEPT,),
        ).fetchall()
    )
    total = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, "concept"))).fetchone()
    assert total is not None
    rows = connection.execute(
        sql.SQL(
            "SELECT one.vocabulary_id, count(*),"
            " count(*) FILTER (WHERE item.relationship_id = 'Maps to' AND item.invalid_reason IS NULL),"
            " count(*) FILTER (WHERE one.concept_id IS NULL OR two.concept_id IS NULL)"
            " FROM {relationship} AS item LEFT JOIN {concept} AS one ON one.concept_id = item.concept_id_1"
            " LEFT JOIN {concept} AS two ON two.concept_id = item.concept_id_2"
            " WHERE item.concept_id_1 < %(custom)s AND item.concept_id_2 < %(custom)s GROUP BY 1"
        ).format(
            relationship=sql.Identifier(schema, "concept_relationship"), concept=sql.Identifier(schema, "concept")
        ),
        {"custom": FIRST_CUSTOM_CONCEPT},
    ).fetchall()
    maps_to = {name: count for name, _, count, _ in rows if name is not None}
    return ReleaseCounts(
        {
            name: {"concepts": count, "maps_to": maps_to.get(name, 0), "version": versions.get(name, "")}
            for name, count in sorted(concepts.items())
        },
        int(total[0]),
        sum(row[1] for row in rows),
        sum(row[3] for row in rows),
    )


def counts_of(
    connection: psycopg.Connection, schema: str, release: VocabularyRelease
) -> Mapping[str, Mapping[str, Any]]:
    """By vocabulary; counted now where the release was loaded before counts were kept."""
    return release.vocabularies or count_release(connection, schema, {}).vocabularies


def older_than_active(label: str, active: VocabularyRelease | None) -> str | None:
    """A reason against a release with this label, before any of its rows is read."""
    if active is None:
        return None
    own, others = release_date(label), release_date(active.release)
    if own is None or others is None or own >= others:
        return None
    return f"it is of {own:%d %B %Y}, older than the active one of {others:%d %B %Y}"


def reasons_against(
    counts: ReleaseCounts, active: Mapping[str, Mapping[str, Any]], download: VocabularyDownload
) -> list[str]:
    """Sentences without a beginning capital; [] where nothing speaks against it."""
    return [*_losses(counts, active, download), *_dangling(counts)]


def _losses(counts: ReleaseCounts, active: Mapping[str, Mapping[str, Any]], download: VocabularyDownload) -> list[str]:
    reasons = []
    for name, before in sorted(active.items()):
        if not before["concepts"] or (download.selected is not None and name not in download.selected):
            continue
        after = counts.vocabularies.get(name)
        if after is None:
            reasons.append(f"{name} is not in it, of which {before['concepts']:,} concepts are loaded")
            continue
        for what, word in (("concepts", "concepts"), ("maps_to", "`Maps to`")):
            lost = before[what] - after[what]
            if lost > before[what] * _MOST_LOST:
                share = lost / before[what]
                reasons.append(f"the {word} of {name} fall by {share:.0%}, from {before[what]:,} to {after[what]:,}")
    return reasons


def fallen_tables(
    rows: Mapping[str, int],
    before: Mapping[str, int],
    selected: Sequence[str] | None,
    selected_before: Sequence[str] | None,
) -> list[str]:
    """Reasons against files that end too early, at the end of a line: relationships and ancestors of whole vocabularies
    fall with their concepts, but not alone.

    `rows`, `before`: table → rows that its file had, of the download and of the active release ({}: loaded before they were
    kept). With another `--only` they cannot be compared.
    """
    if selected != selected_before:
        return []
    reasons = []
    always = {*cdm.tables_of(CdmVersion.V5_4)}
    for table, count in sorted(before.items()):
        if table not in rows and table not in always:  # a file of CDM 5.5, which not every download has
            continue
        lost = count - rows.get(table, 0)
        if lost > count * _MOST_LOST:
            share = lost / count
            reasons.append(f"the rows of {table.upper()} fall by {share:.0%}, from {count:,} to {rows.get(table, 0):,}")
    return reasons


def _dangling(counts: ReleaseCounts) -> list[str]:
    """CPT-4's concepts are loaded from their own file, and `--only` leaves relationships out with their concepts: what is
    left has no such explanation."""
    if counts.dangling <= counts.relationships * _MOST_DANGLING:
        return []
    reason = (
        f"{counts.dangling:,} of {counts.relationships:,} relationships name a concept that it does not have:"
        " CONCEPT.csv and CONCEPT_RELATIONSHIP.csv are not of one download, or one was cut short"
    )
    return [reason]
