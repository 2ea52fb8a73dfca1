"""The file of a site's local map that workers read beside the concept index (`pipeline.transform.concepts.local_rows`).

It stands in the folder of the release's index, named by the hash of its content: an approval makes a small file, and
compiles nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import polars as pl
import psycopg
from filelock import FileLock
from psycopg import sql

from pipeline.core.files import disk_errors, write_whole
from pipeline.fhir.system_name import plain_name
from pipeline.transform.concepts.code_sets import TEXT_VOCABULARY
from pipeline.transform.concepts.index import ConceptIndex
from pipeline.transform.concepts.local_rows import CUT_TEXT, LOCAL_SCHEMA, SOURCE_CODE_LENGTH, cut_text, text_key
from pipeline.transform.mapping.mappings import Mappings
from pipeline.transform.routing import VALUE_DOMAINS
from pipeline.warehouse.connection import connect
from pipeline.warehouse.local_map.rows import Answer, MapSchemas, current_rows, has_local_map
from pipeline.warehouse.local_map.source_to_concept_map import ORIGIN, align_source_to_concept_map
from pipeline.warehouse.local_map.targets import Target, recheck_local_map, targets_of

__all__ = ["LocalMapReport", "align_local_map", "local_rows", "with_local_map"]

_log = logging.getLogger(__name__)

_FORMAT = 2
_PREFIX = "local_map-"
#: Longer than any load that still reads the file: two weeks.
_UNUSED_SECONDS = 14 * 86_400


@dataclass(frozen=True)
class LocalMapReport:
    """What was changed before a site's local map was read, and what people should know of it."""

    notes: tuple[str, ...] = ()
    #: False: this database user may not change what has to be
    is_aligned: bool = True


def align_local_map(connection: psycopg.Connection, *, vocab_schema: str, etl_schema: str) -> LocalMapReport:
    """Local maps, source_to_concept_map and the active release brought together; in the caller's transaction.

    Where this user may not write, everything is as it was and a note says so. Where nothing differs it only reads.
    """
    names = {"vocab_schema": vocab_schema, "etl_schema": etl_schema}
    notes: list[str] = []
    try:
        with connection.transaction():
            table = align_source_to_concept_map(connection, **names)
            checked = recheck_local_map(connection, **names)
            if checked.followed or checked.flagged or checked.restored:
                table_after = align_source_to_concept_map(connection, **names)
                notes += table_after.notes
            notes += [*table.notes, *checked.sentences()]
            if table.taken_in:
                notes.append(f"{table.taken_in:,} rows of source_to_concept_map were taken into local_map.")
    except psycopg.errors.InsufficientPrivilege:
        note = "source_to_concept_map is brought up to date by the next load: this database user may not write it."
        return LocalMapReport((note,), is_aligned=False)
    return LocalMapReport(tuple(dict.fromkeys(notes)))


def with_local_map(
    url: str,
    index: ConceptIndex,
    site: str | None,
    mappings: Mappings,
    *,
    vocab_schema: str,
    etl_schema: str,
    resolved: pl.DataFrame | None = None,
) -> ConceptIndex:
    """The index under the site's local map as it is now (None: what is of all sites), which is aligned first.

    `resolved`: what the site's resolvers said (RESOLVED_SCHEMA); it counts where neither the local map nor the release has
    anything. The index is as it was where nobody has said anything. Raises LandingError when the disk refuses.
    """
    schemas = MapSchemas(vocab_schema, etl_schema)
    names = hashlib.blake2b((site or "").encode(), digest_size=8).hexdigest()
    kept = index.folder / f"{_PREFIX}{names}.json"
    with connect(url) as connection:
        if not has_local_map(connection, schemas):
            return index
        found = _kept(kept)
        if found is None or found.state != _state(connection, schemas, mappings, resolved):
            report = align_local_map(connection, vocab_schema=vocab_schema, etl_schema=etl_schema)
            rows = local_rows(connection, schemas, site, mappings)
            if resolved is not None and not resolved.is_empty():
                rows = pl.concat([rows, _resolved_rows(connection, schemas, resolved, mappings)])
            content = hashlib.sha256(rows.write_csv().encode()).hexdigest() if rows.height else ""
            found = _Kept(_state(connection, schemas, mappings, resolved), content, report.notes)
            with disk_errors("The local map", index.folder, "What is approved is in the database."):
                _write(rows, index.folder / found.file_name)
                if report.is_aligned:
                    _keep(found, kept)
    for note in found.notes:
        _log.warning("%s", note)
    return index.with_local(index.folder / found.file_name, found.content) if found.content else index


@dataclass(frozen=True)
class _Kept:
    """What a site's local map was made from, so that a night in which nothing changed makes none."""

    state: str
    #: hash of the rows; empty: nobody has decided anything
    content: str
    notes: tuple[str, ...]

    @property
    def file_name(self) -> str:
        return f"{_PREFIX}{self.content[:16]}-{_FORMAT}.parquet"


def _state(
    connection: psycopg.Connection, schemas: MapSchemas, mappings: Mappings, resolved: pl.DataFrame | None
) -> str:
    """Hash of all that a local map is made from, but for the release."""
    query = sql.SQL(
        "SELECT md5((SELECT string_agg(row::text, chr(10) ORDER BY id) FROM {} AS row WHERE valid_until IS NULL OR is_written)),"
        " md5((SELECT string_agg(row::text, chr(10) ORDER BY row::text) FROM {} AS row)), (SELECT count(*) FROM {})"
    ).format(schemas.local_map, schemas.of_vocabulary("source_to_concept_map"), schemas.of_vocabulary("vocabulary"))
    names = sorted(mappings.code_systems.items()), sorted(mappings.systems.aliases.items())
    said = "" if resolved is None else resolved.write_csv()
    return hashlib.sha256(repr((connection.execute(query).fetchone(), names, said, _FORMAT)).encode()).hexdigest()


def _kept(file: Path) -> _Kept | None:
    """What is kept, if its file is there."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        kept = _Kept(found["state"], found["content"], tuple(found["notes"]))
        if kept.content:
            os.utime(file.with_name(kept.file_name))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kept


def _keep(kept: _Kept, file: Path) -> None:
    content = {"state": kept.state, "content": kept.content, "notes": kept.notes}
    with FileLock(file.parent.parent / ".lock"):
        write_whole(file, json.dumps(content).encode())


def _write(rows: pl.DataFrame, file: Path) -> None:
    """A file that is there is marked as in use; those of former answers go when nothing has used them for long."""
    if rows.is_empty():
        return
    buffer = io.BytesIO()
    rows.write_parquet(buffer)
    with FileLock(file.parent.parent / ".lock"):
        write_whole(file, buffer.getvalue())
    for other in file.parent.glob(f"{_PREFIX}*.parquet"):
        if other != file and file.stat().st_mtime - other.stat().st_mtime > _UNUSED_SECONDS:
            other.unlink(missing_ok=True)


@dataclass
class _Answers:
    """The answers about one source."""

    #: the site's own answers stand in place of those of all sites
    is_of_site: bool = False
    answers: list[Answer] = field(default_factory=list)


def local_rows(
    connection: psycopg.Connection, schemas: MapSchemas, site: str | None, mappings: Mappings
) -> pl.DataFrame:
    """What the local map says at a site, in the active release. Columns: LOCAL_SCHEMA, sorted.

    Approved answers count whose targets are valid Standard concepts; a source that has none of them, and was reviewed
    as having no map, has one row without a target.
    """
    approved = [
        row.answer
        for row in current_rows(connection, schemas)
        if row.answer.status == "approved" and row.answer.site in (None, site)
    ]
    targets = targets_of(connection, schemas, (answer.target_concept_id for answer in approved))
    rows: list[tuple[object, ...]] = []
    claimed: set[tuple[str, str]] = set()
    for is_spelling in (False, True):  # a code as somebody wrote it comes before another way of writing one
        for key, answers in _by_key(approved, mappings, spelling=is_spelling).items():
            pairs = _pairs(answers, targets)
            if pairs and key not in claimed:
                claimed.add(key)
                own = max((answer.source_concept_id or 0 for answer in answers), default=0) or None
                rows += [(*key, own, number, *pair, False) for number, pair in enumerate(pairs, 1)]
    frame = pl.DataFrame(rows, schema=dict(LOCAL_SCHEMA), orient="row")
    return frame.sort("system_key", "code_key", "pair_number")


def _resolved_rows(
    connection: psycopg.Connection, schemas: MapSchemas, resolved: pl.DataFrame, mappings: Mappings
) -> pl.DataFrame:
    """LOCAL_SCHEMA of what resolvers said, as far as the active release holds its concepts as valid Standard ones: of each
    code what the first of them said that has such a concept."""
    targets = targets_of(connection, schemas, pl.concat([resolved[name] for name in _OF_RESOLVED]).drop_nulls())
    usable = {number for number, target in targets.items() if target.is_usable}
    found: dict[tuple[str, str], tuple[int, dict[_Pair, None]]] = {}
    for place, system, code, target, value in resolved.sort(*_RESOLVED_ORDER).iter_rows():
        if target not in usable:
            continue
        canonical = mappings.systems.canonical(system)
        key = plain_name(mappings.code_systems.get(canonical, canonical)), code.strip()
        first, pairs = found.setdefault(key, (place, {}))
        if first == place:
            domain, vocabulary = targets[target].domain_id, targets[target].vocabulary_id
            pairs[target, domain, vocabulary, value if value in usable else None, None] = None
    rows = [
        (*key, None, number, *pair, True)
        for key, (_, pairs) in sorted(found.items())
        for number, pair in enumerate(pairs, 1)
    ]
    return pl.DataFrame(rows, schema=dict(LOCAL_SCHEMA), orient="row")


_OF_RESOLVED = ("target_concept_id", "value_concept_id")
_RESOLVED_ORDER = ("place", "system", "code", *_OF_RESOLVED)


def _by_key(approved: Iterable[Answer], mappings: Mappings, *, spelling: bool) -> dict[tuple[str, str], list[Answer]]:
    found: dict[tuple[str, str], _Answers] = {}
    for answer in approved:
        for key in _keys(answer, mappings, spelling=spelling):
            of_key = found.setdefault(key, _Answers())
            if (answer.site is not None) and not of_key.is_of_site:
                found[key] = of_key = _Answers(is_of_site=True)
            if of_key.is_of_site == (answer.site is not None):
                of_key.answers.append(answer)
    return {key: of_key.answers for key, of_key in found.items()}


def _keys(answer: Answer, mappings: Mappings, *, spelling: bool) -> list[tuple[str, str]]:
    """system_key and code_key of the source, as somebody wrote it, or (`spelling`) in the customary form of its
    vocabulary."""
    if answer.source_code is None:
        text = answer.source_text or ""
        may_be_cut = answer.origin == ORIGIN and len(text) >= SOURCE_CODE_LENGTH - 1
        if spelling:
            return [(CUT_TEXT, text_key(cut_text(text)))] if may_be_cut else []
        return [(TEXT_VOCABULARY, text_key(text))]
    system = mappings.systems.canonical(answer.source_system)
    vocabulary = mappings.code_systems.get(system, system)
    code = answer.source_code.strip()
    return [(plain_name(vocabulary), mappings.code_forms.customary(vocabulary, code) if spelling else code)]


#: target_concept_id, target_domain_id, target_vocabulary_id, value_concept_id, unit_concept_id
_Pair = tuple[int | None, str | None, str | None, int | None, int | None]


def _pairs(answers: list[Answer], targets: dict[int, Target]) -> list[_Pair]:
    """Targets with their values and unit, by the index's own rule: those carry values that have a column for them."""
    usable = {kind: _usable(answers, targets, kind) for kind in ("to", "value", "unit")}
    if not usable["to"]:
        return [(None, None, None, None, None)] if any(answer.is_no_map for answer in answers) else []
    carriers = [target for target in usable["to"] if target.domain_id in VALUE_DOMAINS] or usable["to"]
    values = usable["value"]
    if not values:
        carried: list[tuple[Target, Target | None]] = [(target, None) for target in usable["to"]]
    else:
        paired = zip(carriers, values, strict=True) if len(carriers) == len(values) else product(carriers, values)
        carried = [*paired, *((target, None) for target in usable["to"] if target not in carriers)]
    unit = usable["unit"][0].concept_id if usable["unit"] else None
    pairs: list[_Pair] = [
        (target.concept_id, target.domain_id, target.vocabulary_id, value.concept_id if value else None, unit)
        for target, value in carried
    ]
    return sorted(pairs, key=lambda pair: (pair[0] or 0, pair[3] or 0))


def _usable(answers: list[Answer], targets: dict[int, Target], kind: str) -> list[Target]:
    ids = sorted({answer.target_concept_id for answer in answers if answer.kind == kind})
    return [targets[number] for number in ids if number in targets and targets[number].is_usable]
