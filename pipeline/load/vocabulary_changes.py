"""What another vocabulary release, or local map, changes for what is loaded: compared code set by code set.

Each load leaves the answers of the code sets that it looked up (`etl.vocabulary_use`). Where a site's vocabulary is another
one than that of its last comparison, the same is asked again; the current lines that hold a code set with another answer
are marked (`ANSWER_CHANGED` for their fingerprint), in the same transaction as the new answers. What is marked is old: loads
map it again where it comes, `epic-omop remap` maps it from landing, `status` counts it. Nothing is mapped here.

Where nothing is another one, that is seen by one row, and nothing is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import psycopg

from omop_schema.etl import ANSWER_CHANGED
from pipeline.core.errors import LandingError
from pipeline.core.settings import SiteSettings
from pipeline.landing.chunks import plan_chunks, read_lines
from pipeline.landing.reading import is_landed, landed_bytes, read_lines_at
from pipeline.load.code_search import CodeSearch
from pipeline.load.current_lines import COUNTS
from pipeline.load.fingerprints import SiteRules
from pipeline.publication.known_cache import keeping_mark
from pipeline.publication.link_roles import NO_FACTS
from pipeline.publication.sql import Database
from pipeline.publication.steps.stand_ins import FACTS_ABOUT_KEYS, IDENTIFIER
from pipeline.publication.steps.vocabulary_uses import (
    ComparedState,
    VocabularyMark,
    VocabularyUses,
    compared_state,
    publication_hash,
    save_answers,
    save_state,
)
from pipeline.staging import schemas
from pipeline.staging.parts import StagedExport
from pipeline.transform.concepts.answers import ANSWER_SCHEMA, signed_hash
from pipeline.warehouse.copying import read_frame, temporary_table
from pipeline.warehouse.runtime import Runtime

__all__ = [
    "AnswerChange",
    "VocabularyChanges",
    "compared_with_another",
    "follow_vocabulary",
    "new_uses",
    "vocabulary_name",
]

#: A file of which current lines are less than this share is read at their places, others as a whole.
_SPARSE = 0.1
#: An answer that no vocabulary gives: of texts that had none.
_NO_ANSWER = 0

_STATES = "resource_state AS state JOIN site_resource_type AS kind USING (site_resource_type_id)"


@dataclass(frozen=True)
class AnswerChange:
    """A code set with another answer."""

    #: as `answers.as_asked` writes it
    asked: str
    #: standard concepts' ids, joined by |; empty: none
    before: str
    after: str


@dataclass(frozen=True)
class VocabularyChanges:
    """What a comparison of one site found."""

    before: str
    after: str
    changes: tuple[AnswerChange, ...] = ()
    #: resources whose lines hold one of them
    resources: int = 0


def new_uses(connection: psycopg.Connection, site: str, staged: StagedExport, rules: SiteRules) -> VocabularyUses:
    """The answers of the code sets that an export's lines were looked up by, and the site had not asked before. Commits."""
    asked = (
        staged.scan(schemas.CODE_SET).select(pl.col("asked").unique(maintain_order=True)).collect()["asked"].to_list()
    )
    row = connection.execute("SELECT FROM vocabulary_state WHERE site = %s", (site,)).fetchone()
    if row is None:
        asked += rules.answers.texts()
    if asked:
        keys = {signed_hash(one): one for one in asked}
        known = connection.execute(
            "SELECT use_id FROM vocabulary_use WHERE site = %s AND use_id = ANY(%s)", (site, list(keys))
        )
        for (use_id,) in known:
            del keys[use_id]
        asked = list(keys.values())
    connection.commit()
    return VocabularyUses(rules.mark, rules.answers.of(asked))


def follow_vocabulary(
    runtime: Runtime, connection: psycopg.Connection, site: SiteSettings, rules: SiteRules, *, keep: bool = True
) -> VocabularyChanges | None:
    """Compare a site's answers with the vocabulary of today, and mark what they change. None: it is the same.

    The caller has the site's lock. Commits; without `keep` the caller reads what is marked and rolls back. Raises nothing
    for files that landing has lost: their lines are marked.
    """
    db = _database(runtime, connection)
    state = compared_state(db, site.name)
    if state is None or (state.mark == rules.mark):
        return None
    answers = _Answers(db, site.name, rules)
    if state.mark.vocabulary == rules.mark.vocabulary:
        # Other rules ask otherwise: what they change is in the fingerprints of the states.
        answers.save(answers.fresh)
        found = None
    else:
        found = _compare(runtime, db, site, rules, answers, state)
    save_state(db, site.name, rules.mark, state.first_export_id, runtime.clock.now())
    if keep:
        connection.commit()
    return found


def _compare(
    runtime: Runtime, db: Database, site: SiteSettings, rules: SiteRules, answers: _Answers, state: ComparedState
) -> VocabularyChanges:
    changed = answers.changed
    found = VocabularyChanges(
        vocabulary_name(state.mark),
        vocabulary_name(rules.mark),
        tuple(AnswerChange(*row) for row in changed.select("asked", "before", "after").iter_rows()),
    )
    if publication_hash(db) != state.publication_hash:
        marked = _mark(db, site.name, None)
    else:
        mappings = rules.mappings
        by_link = mappings.options.questionnaire_codes == "link_id"
        search = CodeSearch(changed["asked"].to_list(), mappings.systems.canonical, by_link=by_link)
        marked = _mark(db, site.name, _holders(runtime, db.connection, site.name, search)) if search else 0
    answers.save(changed.select(*ANSWER_SCHEMA))
    return replace(found, resources=marked)


def compared_with_another(runtime: Runtime, connection: psycopg.Connection, site: str, rules: SiteRules) -> str | None:
    """The vocabulary that a site was compared with last, where that is not the one of today. Reads one row."""
    state = compared_state(_database(runtime, connection), site)
    if state is None or state.mark.vocabulary == rules.mark.vocabulary:
        return None
    return vocabulary_name(state.mark)


def vocabulary_name(mark: VocabularyMark) -> str:
    """A release, with its local map, for people. Two downloads of one label have other hashes."""
    of_map = f" with local map {mark.local_hash[:8]}" if mark.local_hash else ""
    return f"{mark.release} ({mark.vocabulary_hash[:8]}){of_map}"


def _database(runtime: Runtime, connection: psycopg.Connection) -> Database:
    settings = runtime.settings
    return Database(connection, settings.cdm_schema, settings.etl_schema, settings.vocab_schema)


class _Answers:
    """A site's answers as they were, and as they are today."""

    def __init__(self, db: Database, site: str, rules: SiteRules) -> None:
        self._db, self._site = db, site
        self.former = read_frame(
            db.connection, "SELECT asked, answer, targets FROM vocabulary_use WHERE site = %s", ANSWER_SCHEMA, (site,)
        )
        asked = dict.fromkeys([*self.former["asked"].to_list(), *rules.answers.texts()])
        self.fresh = rules.answers.of(list(asked))

    @property
    def changed(self) -> pl.DataFrame:
        """asked, answer, targets, before, after of the code sets that have another answer."""
        both = self.fresh.join(self.former, on="asked", how="left", suffix="_before", maintain_order="left")
        # A text that was not asked for had no concept: texts are not kept.
        return both.filter(pl.col("answer") != pl.col("answer_before").fill_null(_NO_ANSWER)).select(
            *ANSWER_SCHEMA, pl.col("targets_before").fill_null("").alias("before"), pl.col("targets").alias("after")
        )

    def save(self, answers: pl.DataFrame) -> None:
        """Put these in the place of the former ones."""
        if answers.is_empty():
            return
        keys = [signed_hash(asked) for asked in answers["asked"]]
        self._db.connection.execute(
            "DELETE FROM vocabulary_use WHERE site = %s AND use_id = ANY(%s)", (self._site, keys)
        )
        save_answers(self._db, self._site, answers)


# --- lines ---------------------------------------------------------------------------------------------------------------


def _mark(db: Database, site: str, holders: Iterable[int] | None) -> int:
    """Mark resources of a site as old, all of them or these; how many are now that were not. The files of known lines are
    written anew by the next load."""
    condition = ""
    if holders is not None:
        temporary_table(
            db.connection, "holder", pl.DataFrame({"surrogate_id": pl.Series(list(holders), dtype=pl.Int64)})
        )
        condition = " AND state.surrogate_id IN (SELECT surrogate_id FROM pg_temp.holder)"
    with keeping_mark(db.connection):
        marked = db.connection.execute(
            "UPDATE resource_state AS state SET fingerprint = %s FROM site_resource_type AS kind"
            " WHERE kind.site_resource_type_id = state.site_resource_type_id AND kind.site = %s AND fingerprint <> %s"
            f" AND {COUNTS}{condition}",
            (ANSWER_CHANGED, site, ANSWER_CHANGED),
        ).rowcount
    if marked:
        db.connection.execute("DELETE FROM known_mark WHERE site = %s", (site,))
    if holders is not None:
        db.connection.execute("DROP TABLE pg_temp.holder")
    return marked


def _holders(runtime: Runtime, connection: psycopg.Connection, site: str, search: CodeSearch) -> set[int]:
    """Resources (surrogate ids) whose current line holds a code set, or who use a fact that does."""
    found = _users_of_facts(connection, search)
    files = connection.execute(
        "SELECT export_id, file_number, count(*), sum(byte_length)::bigint"
        f" FROM {_STATES} WHERE kind.site = %s AND {COUNTS} AND fingerprint <> %s GROUP BY 1, 2 ORDER BY 1, 2",
        (site, ANSWER_CHANGED),
    ).fetchall()
    whole, sparse, lost = [], [], []
    paths = _LandedPaths(runtime, site)
    for export_id, number, _, size in files:
        path = paths.of(export_id, number)
        if path is None:
            lost.append((export_id, number))
        elif size < _SPARSE * landed_bytes(path):
            sparse.append((export_id, number))
        else:
            whole.append((export_id, number))
    hits: list[tuple[int, int, int]] = []
    for export_id, number in whole:
        try:
            hits += [(export_id, number, offset) for offset in _offsets(paths.of(export_id, number), search)]
        except LandingError:
            lost.append((export_id, number))
    found |= _at(connection, site, hits)
    found |= _in_sparse(connection, site, paths, sparse, search)
    found |= {line[3] for line in _lines_in(connection, site, lost)}
    return found


class _LandedPaths:
    """Files of a site's exports; None where landing does not hold one."""

    def __init__(self, runtime: Runtime, site: str) -> None:
        self._landing, self._site = runtime.landing, site
        self._exports: dict[int, dict[int, Path]] = {}

    def of(self, export_id: int, number: int) -> Path | None:
        if export_id not in self._exports:
            try:
                export = self._landing.read_manifest(self._site, export_id)
                self._exports[export_id] = {file.number: file.path for file in export.files}
            except LandingError:
                self._exports[export_id] = {}
        path = self._exports[export_id].get(number)
        return path if path is not None and is_landed(path) else None


def _offsets(path: Path | None, search: CodeSearch) -> Iterator[int]:
    """Where lines of a file begin that hold a code set. Raises LandingError."""
    assert path is not None
    for chunk in plan_chunks(path):
        lines = read_lines(path, chunk)
        places = search.candidates(lines)
        for offset, raw in zip(lines.offsets[places].tolist(), lines.raws_at(places), strict=True):
            if search.matches(raw):
                yield offset


def _at(connection: psycopg.Connection, site: str, hits: Sequence[tuple[int, int, int]]) -> set[int]:
    """Resources whose current lines lie there."""
    if not hits:
        return set()
    schema = {"export_id": pl.Int64, "file_number": pl.Int32, "byte_offset": pl.Int64}
    temporary_table(connection, "code_hit", pl.DataFrame(hits, schema=schema, orient="row"))
    rows = connection.execute(
        f"SELECT state.surrogate_id FROM {_STATES} JOIN pg_temp.code_hit USING (export_id, file_number, byte_offset)"
        f" WHERE kind.site = %s AND {COUNTS}",
        (site,),
    ).fetchall()
    connection.execute("DROP TABLE pg_temp.code_hit")
    return {surrogate_id for (surrogate_id,) in rows}


def _lines_in(
    connection: psycopg.Connection, site: str, files: Sequence[tuple[int, int]]
) -> list[tuple[int, int, tuple[int, int], int]]:
    """Current lines of some files: export, file, (offset, length), resource; in the order in which they lie."""
    if not files:
        return []
    rows = connection.execute(
        f"SELECT export_id, file_number, byte_offset, byte_length, state.surrogate_id FROM {_STATES}"
        f" WHERE kind.site = %s AND {COUNTS} AND (export_id, file_number) IN"
        " (SELECT * FROM unnest(%s::bigint[], %s::integer[])) ORDER BY 1, 2, 3",
        (site, [export_id for export_id, _ in files], [number for _, number in files]),
    ).fetchall()
    return [(export_id, number, (offset, length), own) for export_id, number, offset, length, own in rows]


def _in_sparse(
    connection: psycopg.Connection,
    site: str,
    paths: _LandedPaths,
    files: Sequence[tuple[int, int]],
    search: CodeSearch,
) -> set[int]:
    """Of files with few current lines."""
    lines = _lines_in(connection, site, files)
    by_file: dict[tuple[int, int], list[tuple[tuple[int, int], int]]] = {}
    for export_id, number, place, own in lines:
        by_file.setdefault((export_id, number), []).append((place, own))
    found = set()
    for (export_id, number), places in by_file.items():
        path = paths.of(export_id, number)
        assert path is not None
        try:
            raws = read_lines_at(path, [place for place, _ in places])
            found |= {own for (_, own), raw in zip(places, raws, strict=True) if search.matches(raw)}
        except LandingError:
            found |= {own for _, own in places}
    return found


def _users_of_facts(connection: psycopg.Connection, search: CodeSearch) -> set[int]:
    """Resources that use a fact with a coding: those that refer to whom it is about, and these."""
    facts = read_frame(
        connection,
        "SELECT surrogate_id, name, value FROM reference_value WHERE left(value, 1) IN ('{', '[')",
        {"surrogate_id": pl.Int64, "name": pl.String, "value": pl.String},
    )
    touched = [value for value in facts["value"].unique() if search.touches(value)]
    facts = facts.filter(pl.col("value").is_in(touched))
    about = facts["surrogate_id"].unique().to_list()
    keys = facts.filter(pl.col("name").is_in(FACTS_ABOUT_KEYS))["surrogate_id"].unique().to_list()
    rows = connection.execute(
        "SELECT from_surrogate_id FROM reference WHERE to_surrogate_id = ANY(%s) AND role <> ALL(%s)"
        " UNION SELECT owner_surrogate_id FROM reference_value WHERE name = %s AND surrogate_id = ANY(%s)",
        (about, NO_FACTS, IDENTIFIER, keys),
    )
    return {*about, *(user for (user,) in rows)}
