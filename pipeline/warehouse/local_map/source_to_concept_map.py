"""`source_to_concept_map` and local maps: the CDM's table holds a copy of what is approved, and what somebody inserts there
is taken in.

The table knows no site, and 20 characters of a vocabulary: each site and system has a short id, with its row in
`vocabulary` that says what it stands for. A system of all sites that fits is its own id. Values and units have no place in
the table, nor has "reviewed, no map".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from pipeline.transform.concepts.code_sets import TEXT_VOCABULARY
from pipeline.transform.concepts.local_rows import SOURCE_CODE_LENGTH, cut_text
from pipeline.warehouse.local_map.rows import (
    Answer,
    LocalRow,
    MapSchemas,
    current_rows,
    former_rows,
    has_local_map,
    lock_local_map,
    replace_answers,
)
from pipeline.warehouse.local_map.targets import Target, target_problem, targets_of

__all__ = ["ORIGIN", "TableReport", "align_source_to_concept_map", "short_vocabulary_id"]

#: Of answers that were found in the table.
ORIGIN = "source_to_concept_map"

_VOCABULARY_ID_LENGTH = 20
_NAME_LENGTH = 255
_SITE_LETTERS = 7

#: source_vocabulary_id, source_code, target_concept_id
_Key = tuple[str, str, int]


@dataclass(frozen=True)
class TableReport:
    """What was done between the table and the local maps."""

    #: rows that somebody inserted into the table, now answers of `etl.local_map`
    taken_in: int = 0
    #: rows that were added to the table, and taken out of it
    written: int = 0
    removed: int = 0
    #: sentences about rows that were not taken in, or were deleted in the table and stand there again
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Found:
    """A row of the table that holds."""

    key: _Key
    description: str | None
    source_concept_id: int


@dataclass(frozen=True)
class _Plan:
    taken_in: list[Answer]
    #: local rows by the row that they make of the table
    missing: dict[_Key, LocalRow]
    surplus: list[_Key]
    #: answers whose mark of being in the table is wrong: → whether they are
    marks: dict[int, bool]
    vocabularies: dict[str, tuple[str | None, str]]
    targets: dict[int, Target]
    notes: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        return not (self.taken_in or self.missing or self.surplus or self.marks or self.vocabularies)


def short_vocabulary_id(site: str | None, system: str) -> str:
    """The `source_vocabulary_id` of a site's system: the system itself where it is of all sites and fits, else a name
    of at most 20 characters that is always the same for them."""
    if site is None and len(system) <= _VOCABULARY_ID_LENGTH:
        return system
    letters = re.sub(r"[^A-Za-z0-9-]", "", site or "all")[:_SITE_LETTERS]
    digest = hashlib.blake2b(f"{site or ''}\0{system}".encode(), digest_size=6).hexdigest()
    return f"{letters}_{digest}"


def align_source_to_concept_map(connection: psycopg.Connection, *, vocab_schema: str, etl_schema: str) -> TableReport:
    """Take in what was inserted into the table, and make it say what the local maps say; in the caller's transaction.

    Where nothing differs it only reads. A row whose code has another approved answer, or whose target is no valid
    Standard concept, is named; the latter is taken in as flagged.
    """
    schemas = MapSchemas(vocab_schema, etl_schema)
    if not has_local_map(connection, schemas):
        return TableReport()
    plan = _plan(connection, schemas)
    if plan.is_empty:
        return TableReport(notes=plan.notes)
    lock_local_map(connection)
    plan = _plan(connection, schemas)
    taken, notes = len(plan.taken_in), plan.notes
    if plan.taken_in:
        replace_answers(connection, schemas, [], plan.taken_in)
        plan = replace(_plan(connection, schemas), notes=())
    _write(connection, schemas, plan)
    return TableReport(taken, len(plan.missing), len(plan.surplus), (*notes, *plan.notes))


def _plan(connection: psycopg.Connection, schemas: MapSchemas) -> _Plan:
    current = current_rows(connection, schemas)
    former = former_rows(connection, schemas)
    found = _found(connection, schemas)
    targets = targets_of(
        connection, schemas, [*(row.answer.target_concept_id for row in current), *(item.key[2] for item in found)]
    )
    mapping = [row for row in current if row.answer.kind == "to" and row.answer.target_concept_id]
    stands = {_key(row.answer): row for row in mapping if row.answer.status == "approved"}
    stands = {key: row for key, row in stands.items() if key[2] in targets}
    # A row whose target the release does not allow is left where somebody put it.
    left = {_key(row.answer) for row in mapping if row.answer.target_problem}
    gone = {_key(row.answer) for row in (*former, *mapping) if row.is_written} - stands.keys() - left
    present = {item.key: item for item in found}
    foreign = [item for key, item in present.items() if key not in stands and key not in left and key not in gone]
    taken_in, notes = _taken_in(foreign, current, targets)
    missing = {key: row for key, row in stands.items() if key not in present}
    deleted = sum(row.is_written for row in missing.values())
    if deleted:
        notes.append(
            f"{deleted:,} rows were deleted in source_to_concept_map and stand there again: end them in local_map."
        )
    marks = {row.id: True for row in stands.values() if not row.is_written}
    marks |= {row.id: False for row in (*former, *mapping) if row.is_written and _key(row.answer) in gone}
    marks |= {row.id: False for row in former if row.is_written}
    return _Plan(
        taken_in,
        missing,
        [key for key in present if key in gone],
        marks,
        _missing_vocabularies(connection, schemas, stands.values()),
        targets,
        tuple(notes),
    )


def _key(answer: Answer) -> _Key:
    return short_vocabulary_id(answer.site, answer.source_system), _source_code(answer), answer.target_concept_id


def _source_code(answer: Answer) -> str:
    """The code as it fits; a longer one has the hash of the whole, a longer text is cut as it always was."""
    if answer.source_code is None:
        return cut_text(answer.source_text or "")
    if len(answer.source_code) <= SOURCE_CODE_LENGTH:
        return answer.source_code
    digest = hashlib.blake2b(answer.source_code.encode(), digest_size=4).hexdigest()
    return f"{answer.source_code[: SOURCE_CODE_LENGTH - 9]}~{digest}"


def _found(connection: psycopg.Connection, schemas: MapSchemas) -> list[_Found]:
    query = sql.SQL(
        "SELECT source_vocabulary_id, source_code, target_concept_id, max(source_code_description),"
        " max(source_concept_id) FROM {} WHERE invalid_reason IS NULL AND target_concept_id <> 0 GROUP BY 1, 2, 3"
        " ORDER BY 1, 2, 3"
    ).format(schemas.of_vocabulary("source_to_concept_map"))
    return [_Found(row[:3], row[3], row[4] or 0) for row in connection.execute(query)]


def _taken_in(
    foreign: list[_Found], current: list[LocalRow], targets: dict[int, Target]
) -> tuple[list[Answer], list[str]]:
    """Answers that rows of the table are, and sentences about those that are none."""
    systems = {
        short_vocabulary_id(row.answer.site, row.answer.source_system): (row.answer.site, row.answer.source_system)
        for row in current
    }
    decided = {key[:2] for key in (_key(row.answer) for row in current if row.answer.kind == "to") if key[0] in systems}
    answers, notes = [], []
    for item in foreign:
        vocabulary, code, target = item.key
        if item.key[:2] in decided:
            notes.append(
                f"source_to_concept_map has {vocabulary} {code} → {target}, which is not taken in: the code has another"
                " answer in local_map. End that one, or delete the row."
            )
            continue
        site, system = systems.get(vocabulary, (None, vocabulary))
        problem = target_problem(targets, target)
        if problem:
            notes.append(f"source_to_concept_map has {vocabulary} {code} → {target}, which cannot be used: {problem}.")
        is_text = system == TEXT_VOCABULARY
        answers.append(
            Answer(
                site,
                system,
                None if is_text else code,
                code if is_text else None,
                target,
                status="flagged" if problem else "approved",
                source_description=item.description,
                source_concept_id=item.source_concept_id or None,
                target_problem=problem,
                origin=ORIGIN,
            )
        )
    return answers, notes


def _missing_vocabularies(
    connection: psycopg.Connection, schemas: MapSchemas, rows: Iterable[LocalRow]
) -> dict[str, tuple[str | None, str]]:
    """Short ids without a row in `vocabulary` → site and system."""
    named = {
        short_vocabulary_id(row.answer.site, row.answer.source_system): (row.answer.site, row.answer.source_system)
        for row in rows
    }
    query = sql.SQL("SELECT vocabulary_id FROM {} WHERE vocabulary_id = ANY(%s)").format(
        schemas.of_vocabulary("vocabulary")
    )
    known = {name for (name,) in connection.execute(query, (sorted(named),))}
    return {name: named[name] for name in sorted(named.keys() - known)}


def _write(connection: psycopg.Connection, schemas: MapSchemas, plan: _Plan) -> None:
    """Vocabularies first: where the CDM's foreign keys are in place, rows refer to them."""
    insert = sql.SQL(
        "INSERT INTO {} (vocabulary_id, vocabulary_name, vocabulary_reference, vocabulary_version,"
        " vocabulary_concept_id) VALUES (%s, %s, %s, NULL, 0) ON CONFLICT DO NOTHING"
    ).format(schemas.of_vocabulary("vocabulary"))
    for name, (site, system) in plan.vocabularies.items():
        label = f"{site or 'all sites'}: {system}"
        connection.cursor().execute(insert, (name, label[:_NAME_LENGTH], system[:_NAME_LENGTH]))
    table = schemas.of_vocabulary("source_to_concept_map")
    if plan.surplus:
        connection.execute(
            sql.SQL(
                "DELETE FROM {} AS row USING unnest(%s::text[], %s::text[], %s::bigint[]) AS gone (vocabulary, code, target)"
                " WHERE source_vocabulary_id = vocabulary AND source_code = code AND target_concept_id = target"
                " AND invalid_reason IS NULL"
            ).format(table),
            [list(column) for column in zip(*plan.surplus, strict=True)],
        )
    _copy(connection, table, plan)
    for value in (True, False):
        ids = [number for number, is_written in plan.marks.items() if is_written is value]
        if ids:
            connection.execute(
                sql.SQL("UPDATE {} SET is_written = %s WHERE id = ANY(%s)").format(schemas.local_map), (value, ids)
            )


def _copy(connection: psycopg.Connection, table: sql.Identifier, plan: _Plan) -> None:
    if not plan.missing:
        return
    columns = (
        "source_code, source_concept_id, source_vocabulary_id, source_code_description, target_concept_id,"
        " target_vocabulary_id, valid_start_date, valid_end_date"
    )
    with connection.cursor().copy(sql.SQL("COPY {} ({}) FROM STDIN").format(table, sql.SQL(columns))) as copy:
        for (vocabulary, code, target), row in plan.missing.items():
            description = (row.answer.source_description or "")[:_NAME_LENGTH] or None
            start = row.answer.reviewed_at.date().isoformat() if row.answer.reviewed_at else "1970-01-01"
            own = row.answer.source_concept_id or 0
            copy.write_row(
                (code, own, vocabulary, description, target, plan.targets[target].vocabulary_id, start, "2099-12-31")
            )
