"""Loads OMOP vocabularies: an Athena download → `vocab.*` in PostgreSQL → the concept index in Parquet.

Here are the loading, its record in `etl.vocabulary_release`, and the compilation of the index; reading the index is
`pipeline.transform.concepts.index`, whose names are repeated here for convenience.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, TypeAlias

import polars as pl
import psycopg
from filelock import FileLock
from psycopg import sql
from sqlalchemy.exc import SQLAlchemyError

from omop_schema import cdm
from omop_schema.versions import CdmVersion
from pipeline.core.errors import VocabularyError
from pipeline.core.files import disk_errors, put_in_place, replace_file
from pipeline.transform.concepts.index import (
    ANCESTOR_FILE,
    ANCESTOR_SCHEMA,
    CONCEPT_FILE,
    CONCEPT_SCHEMA,
    INDEX_FILE,
    INDEX_SCHEMA,
    STRENGTH_FILE,
    STRENGTH_SCHEMA,
    ConceptIndex,
    FixedConcept,
    normalise_code,
)
from pipeline.warehouse.connection import connect
from pipeline.warehouse.schema import transaction
from pipeline.warehouse.server_failures import server_failure

__all__ = [
    "ConceptIndex",
    "FixedConcept",
    "Progress",
    "VocabularyRelease",
    "compile_index",
    "concept_counts",
    "current_release",
    "ensure_index",
    "ignored_files",
    "load_vocabulary",
    "normalise_code",
    "open_index",
]

#: Called with (file name, bytes of it read so far, its size in bytes).
Progress: TypeAlias = Callable[[str, int, int], None]

_REQUIRED_TABLES = (
    "vocabulary",
    "domain",
    "concept_class",
    "relationship",
    "concept",
    "concept_relationship",
    "concept_ancestor",
)
_OPTIONAL_TABLES = tuple(table for table in cdm.VOCABULARY_TABLES if table not in _REQUIRED_TABLES)

#: A site's own map is not a part of an Athena download: it stays when the folder has none.
_KEPT_TABLE = "source_to_concept_map"

_CHUNK_BYTES = 1 << 20
_COPY_LINE = re.compile(r"line (\d+)")

#: Counted up when the layout of the index changes, so that old files are not read by new code.
_INDEX_FORMAT = 4

#: Rows a row group: small enough that the statistics of sorted codes let a lookup skip most of the file.
_ROW_GROUP = 100_000

#: Advisory lock for loading, so that two loads come one after the other ("voca" in ASCII).
_LOAD_LOCK = 0x766F6361

_CURRENT = "current"
_DESCRIPTION = "release.json"
_LOAD_ADVICE = "Load one with `epic-omop vocabulary load FOLDER`."
_SQL_FILE = Path(__file__).with_name("concept_index.sql")

# Sorted by bytes, as Parquet's statistics compare, whatever the database's collation is.
_INDEX_QUERY = """
    SELECT vocabulary_id, concept_code, source_concept_id, source_domain_id, source_standard_concept,
           source_invalid_reason,
           row_number() OVER (PARTITION BY vocabulary_id COLLATE "C", concept_code COLLATE "C"
                              ORDER BY target_concept_id, value_concept_id) AS pair_number,
           target_concept_id, target_domain_id, target_vocabulary_id, value_concept_id
    FROM index_row ORDER BY vocabulary_id COLLATE "C", concept_code COLLATE "C", pair_number
"""
_CONCEPT_QUERY = "SELECT * FROM index_concept ORDER BY concept_id"
# concept_ancestor knows standard concepts and classifications alone: of others their next broader ones in their vocabulary.
_ANCESTOR_QUERY = """
    SELECT ancestor_concept_id, descendant_concept_id FROM {vocab}.concept_ancestor
    WHERE ancestor_concept_id <> descendant_concept_id
    UNION
    SELECT CASE relationship_id WHEN 'Is a' THEN concept_id_2 ELSE concept_id_1 END AS broader, concept_id
    FROM {vocab}.concept_relationship AS relationship JOIN {vocab}.concept
    ON concept_id = CASE relationship_id WHEN 'Is a' THEN concept_id_1 ELSE concept_id_2 END
    WHERE relationship_id IN ('Is a', 'Subsumes') AND concept_id_1 <> concept_id_2
    AND relationship.invalid_reason IS NULL AND standard_concept IS DISTINCT FROM 'S'
    ORDER BY descendant_concept_id, ancestor_concept_id
"""
_VALID_STRENGTHS = "WHERE invalid_reason IS NULL ORDER BY drug_concept_id, ingredient_concept_id"


@dataclass(frozen=True)
class VocabularyRelease:
    """A row of `etl.vocabulary_release`."""

    #: `vocabulary_version` of the vocabulary "None", or the first 16 digits of the content's hash.
    release: str
    loaded_at: datetime
    #: Name of the folder it came from, without its path.
    folder_label: str
    concept_count: int
    #: SHA-256 over the files, without a local map.
    content_hash: str


@dataclass(frozen=True)
class _SourceFile:
    table: str
    path: Path
    columns: tuple[str, ...]
    #: Bytes of the header line.
    header_bytes: int


def load_vocabulary(
    url: str, folder: Path, *, vocab_schema: str, etl_schema: str, progress: Progress | None = None
) -> VocabularyRelease:
    """Replace the vocabulary tables by an unpacked Athena download, in one transaction.

    Files are tab-separated and unquoted: a quotation mark is data. Columns are found by their names.
    CONCEPT_CPT4.csv is left out (it has no names until Athena's own tool has merged it into CONCEPT.csv).
    `source_to_concept_map` is replaced only when the folder has SOURCE_TO_CONCEPT_MAP.csv. A file whose table the
    database's version of the CDM does not have is left out (`ignored_files`). Indices are dropped first and made anew
    afterwards.
    Raises VocabularyError for a folder that is not a download and for a broken line, with its file and number;
    the tables are then as before.
    """
    present = _present_files(folder)
    with transaction(url) as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        _check_installed(raw, vocab_schema, etl_schema)
        tables = _installed_tables(raw, vocab_schema)
        files = [_source_file(table, path) for table, path in present.items() if table in tables]
        raw.execute("SELECT pg_advisory_xact_lock(%s)", (_LOAD_LOCK,))
        foreign_keys = _drop_foreign_keys(raw, vocab_schema)
        cdm.drop_indices(connection, vocab_schema, vocab_schema, tables=tables)
        cdm.drop_primary_keys(connection, vocab_schema, vocab_schema, tables=tables)
        content_hash = _replace_tables(raw, files, tables, vocab_schema, progress or _no_progress)
        with _as_vocabulary_error("The keys of the vocabulary tables cannot be made"):
            cdm.create_primary_keys(connection, vocab_schema, vocab_schema, tables=tables)
            cdm.create_indices(connection, vocab_schema, vocab_schema, tables=tables)
            for statement in foreign_keys:
                raw.execute(statement)
        return _record_release(raw, folder, content_hash, vocab_schema, etl_schema)


def ignored_files(folder: Path, version: CdmVersion) -> list[str]:
    """Names of the folder's files whose tables came with a later version of the CDM than this one."""
    tables = {f"{table.upper()}.CSV" for table in set(cdm.VOCABULARY_TABLES) - set(cdm.tables_of(version))}
    return sorted(path.name for path in folder.iterdir() if path.name.upper() in tables)


@contextmanager
def _as_vocabulary_error(what: str) -> Iterator[None]:
    try:
        yield
    except (psycopg.Error, SQLAlchemyError) as error:
        failure = server_failure(error)
        if failure is not None:
            raise failure from error
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise VocabularyError(
            f"{what}: {reason}", "The vocabulary is as it was before. Download it again from Athena."
        ) from error


def _no_progress(_file: str, _done: int, _size: int) -> None:
    pass


def _present_files(folder: Path) -> dict[str, Path]:
    """Table → its file, whatever the case of the name."""
    advice = "Give the folder into which the zip file from Athena was unpacked (with CONCEPT.csv in it)."
    if not folder.is_dir():
        raise VocabularyError(f"{folder} is not a folder.", advice)
    present = {path.name.upper(): path for path in folder.iterdir()}
    names = {table: f"{table.upper()}.CSV" for table in (*_REQUIRED_TABLES, *_OPTIONAL_TABLES)}
    missing = [names[table] for table in _REQUIRED_TABLES if names[table] not in present]
    if missing:
        raise VocabularyError(f"{folder} is not a vocabulary download: {', '.join(missing)} missing.", advice)
    return {table: present[name] for table, name in names.items() if name in present}


def _source_file(table: str, path: Path) -> _SourceFile:
    """Read the header and check it against the table's columns."""
    with path.open("rb") as lines:
        header = lines.readline()
    columns = tuple(name.strip().lower() for name in header.decode("utf-8-sig", "replace").split("\t"))
    known = [field.name for field in cdm.fields(table)]
    missing = [name for name in known if name not in columns]
    unknown = [name for name in columns if name not in known]
    if missing or unknown or len(set(columns)) != len(columns):
        problems = [f"column {name} is missing" for name in missing]
        problems += [f"column {name[:40]!r} is unknown" for name in unknown]
        reason = "; ".join(problems) or "a column is there twice"
        raise VocabularyError(
            f"{path.name}:1: {reason}.", "Vocabulary files are tab-separated, with the CDM's column names."
        )
    return _SourceFile(table, path, columns, len(header))


def _check_installed(connection: psycopg.Connection, vocab_schema: str, etl_schema: str) -> None:
    for schema, table in ((vocab_schema, "concept"), (etl_schema, "vocabulary_release")):
        query = "SELECT 1 FROM pg_tables WHERE schemaname = %s AND tablename = %s"
        if connection.execute(query, (schema, table)).fetchone() is None:
            raise VocabularyError(f"The database has no table {schema}.{table}.", "Run `epic-omop db init` first.")


def _installed_tables(connection: psycopg.Connection, vocab_schema: str) -> list[str]:
    """The vocabulary tables of the database's version of the CDM, in their order."""
    rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (vocab_schema,))
    found = {name for (name,) in rows}
    return [table for table in cdm.VOCABULARY_TABLES if table in found]


def _drop_foreign_keys(connection: psycopg.Connection, vocab_schema: str) -> list[sql.Composed]:
    """Drop every foreign key to a vocabulary table, in any schema; returns the statements that restore them."""
    query = """
        SELECT space.nspname, source.relname, item.conname, pg_get_constraintdef(item.oid)
        FROM pg_constraint AS item
        JOIN pg_class AS source ON source.oid = item.conrelid
        JOIN pg_namespace AS space ON space.oid = source.relnamespace
        JOIN pg_class AS target ON target.oid = item.confrelid
        JOIN pg_namespace AS target_space ON target_space.oid = target.relnamespace
        WHERE item.contype = 'f' AND target_space.nspname = %s AND target.relname = ANY(%s)
    """
    restore = []
    for schema, table, name, definition in connection.execute(query, (vocab_schema, list(cdm.VOCABULARY_TABLES))):
        alter = sql.SQL("ALTER TABLE {} ").format(sql.Identifier(schema, table))
        constraint = sql.Identifier(name)
        connection.execute(alter + sql.SQL("DROP CONSTRAINT {}").format(constraint))
        # The definition is the catalogue's own text, quoted by PostgreSQL.
        added = sql.SQL("ADD CONSTRAINT {} " + definition.replace("{", "{{").replace("}", "}}"))
        restore.append(alter + added.format(constraint))
    return restore


def _replace_tables(
    connection: psycopg.Connection,
    files: list[_SourceFile],
    tables: list[str],
    vocab_schema: str,
    progress: Progress,
) -> str:
    """Empty the tables, fill them from the files, and return the hash of the content."""
    given = {file.table for file in files}
    emptied = [table for table in tables if table in given or table != _KEPT_TABLE]
    names = sql.SQL(", ").join(sql.Identifier(vocab_schema, table) for table in emptied)
    connection.execute(sql.SQL("TRUNCATE {}").format(names))
    digest = hashlib.sha256()
    for file in files:
        file_hash = _copy(connection, file, vocab_schema, progress)
        if file.table != _KEPT_TABLE:  # a local map, and no part of the release
            digest.update(f"{file.table}\0{file_hash}\n".encode())
    for table in tables:
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(vocab_schema, table)))
    return digest.hexdigest()


def _copy(connection: psycopg.Connection, file: _SourceFile, vocab_schema: str, progress: Progress) -> str:
    """COPY one file into its table; returns the SHA-256 of the file."""
    # QUOTE is a character that no vocabulary holds, so that quotation marks are data. FORCE_NOT_NULL: an empty
    # name is an empty text, not NULL.
    texts = [field.name for field in cdm.fields(file.table) if field.required and field.datatype.startswith("varchar")]
    statement = sql.SQL(
        "COPY {} ({}) FROM STDIN (FORMAT csv, DELIMITER E'\\t', QUOTE E'\\b', NULL '', ENCODING 'UTF8'{})"
    ).format(
        sql.Identifier(vocab_schema, file.table),
        sql.SQL(", ").join(map(sql.Identifier, file.columns)),
        sql.SQL(", FORCE_NOT_NULL ({})").format(sql.SQL(", ").join(map(sql.Identifier, texts)))
        if texts
        else sql.SQL(""),
    )
    digest = hashlib.sha256()
    try:
        with file.path.open("rb") as source, connection.cursor().copy(statement) as copy:
            digest.update(source.read(file.header_bytes))
            for chunk in _chunks(source, file, progress):
                digest.update(chunk)
                copy.write(chunk)
    except psycopg.Error as error:
        raise server_failure(error) or _broken_line(file, error) from error
    return digest.hexdigest()


def _chunks(source: BinaryIO, file: _SourceFile, progress: Progress) -> Iterator[bytes]:
    size = file.path.stat().st_size
    done = file.header_bytes
    progress(file.path.name, done, size)
    while chunk := source.read(_CHUNK_BYTES):
        yield chunk
        done += len(chunk)
        progress(file.path.name, done, size)


def _broken_line(file: _SourceFile, error: psycopg.Error) -> VocabularyError:
    context = error.diag.context or ""
    match = _COPY_LINE.search(context)
    # PostgreSQL was not given the header line.
    where = f"{file.path.name}:{int(match[1]) + 1}" if match else file.path.name
    column = re.search(r"column (\w+)", context)
    reason = error.diag.message_primary or type(error).__name__
    return VocabularyError(
        f"{where}: {reason}{f' (column {column[1]})' if column else ''}.",
        "The vocabulary is as it was before. Download it again from Athena, and do not edit the files.",
    )


def _record_release(
    connection: psycopg.Connection, folder: Path, content_hash: str, vocab_schema: str, etl_schema: str
) -> VocabularyRelease:
    version = connection.execute(
        sql.SQL("SELECT vocabulary_version FROM {} WHERE vocabulary_id = 'None'").format(
            sql.Identifier(vocab_schema, "vocabulary")
        )
    ).fetchone()
    release = (version[0] or "").strip() if version else ""
    releases = sql.Identifier(etl_schema, "vocabulary_release")
    connection.execute(sql.SQL("UPDATE {} SET is_current = false WHERE is_current").format(releases))
    connection.execute(
        sql.SQL(
            "INSERT INTO {} (release, loaded_at, folder_label, concept_count, content_hash, is_current)"
            " VALUES (%s, now(), %s, (SELECT count(*) FROM {}), %s, true)"
            " ON CONFLICT (release) DO UPDATE SET loaded_at = excluded.loaded_at, is_current = true,"
            " folder_label = excluded.folder_label, concept_count = excluded.concept_count,"
            " content_hash = excluded.content_hash"
        ).format(releases, sql.Identifier(vocab_schema, "concept")),
        (release or content_hash[:16], folder.resolve().name, content_hash),
    )
    current = _current(connection, etl_schema)
    assert current is not None
    return current


def current_release(url: str, *, etl_schema: str) -> VocabularyRelease | None:
    """The release that is loaded now; None before the first load."""
    with connect(url) as connection:
        return _current(connection, etl_schema)


def _current(connection: psycopg.Connection, etl_schema: str) -> VocabularyRelease | None:
    query = sql.SQL(
        "SELECT release, loaded_at, folder_label, concept_count, content_hash FROM {} WHERE is_current"
    ).format(sql.Identifier(etl_schema, "vocabulary_release"))
    row = connection.execute(query).fetchone()
    return VocabularyRelease(*row) if row else None


def concept_counts(url: str, *, vocab_schema: str) -> dict[str, int]:
    """Concepts by vocabulary_id, the largest vocabulary first."""
    query = sql.SQL("SELECT vocabulary_id, count(*) FROM {} GROUP BY 1 ORDER BY 2 DESC, 1").format(
        sql.Identifier(vocab_schema, "concept")
    )
    with connect(url) as connection:
        return {str(vocabulary): int(count) for vocabulary, count in connection.execute(query)}


def compile_index(url: str, release: VocabularyRelease, *, vocab_schema: str, home: Path) -> Path:
    """Write the release's concept index below `home`/vocabulary and make it the current one; returns its folder.

    `concept_index.parquet` has `INDEX_SCHEMA`'s columns, sorted by vocabulary_id and concept_code, one row for
    each (source, standard concept, value concept):

    - standard concepts are the targets of valid `Maps to` that are Standard and valid themselves. A source
      concept may be invalid; one without `Maps to` but with `Concept replaced by` takes the targets of its
      replacement. A source without any keeps one row with a null target.
    - `Maps to value`: OHDSI's documentation (vocabulary.html, "Mapping of Concepts") allows it with a single
      `Maps to` only, and each value then goes with that target. Other rows may still turn up, and for them the
      rule is our own: only targets whose table has a value column (domains Measurement and Observation; all of
      them where none has) carry values; as many carriers as values are paired in order of concept id, otherwise
      each carrier gets each value, so that no meaning is lost.
    - rows of source_to_concept_map are no part of it: the local map is laid over it (`pipeline.warehouse.local_map`).
    - where a vocabulary has used a code twice, the valid and then the latest concept counts.

    `concept_by_id.parquet` holds every concept with its lowest standard target, `ancestor.parquet` the pairs of
    concept_ancestor except a concept with itself, and for concepts that are not standard the next broader ones
    (`Is a`, `Subsumes`), `drug_strength.parquet` the valid strengths of drugs.
    PostgreSQL joins and sorts and polars streams the result into Parquet, so memory stays flat for a full vocabulary.
    Raises LandingError when the disk refuses.
    """
    root = home / "vocabulary"
    folder = root / _folder_name(release.content_hash)
    with disk_errors("The concept index", root, "The vocabulary in the database is as it should be."):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):
            if not folder.is_dir():
                partial = root / f".{folder.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                try:
                    _write_index(url, vocab_schema, partial)
                    description = {"release": release.release, "content_hash": release.content_hash}
                    (partial / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
                    put_in_place(partial, folder)
                except BaseException:  # it may be what fills the disk
                    shutil.rmtree(partial, ignore_errors=True)
                    raise
            replace_file(root / _CURRENT, folder.name.encode())
    return folder


def ensure_index(url: str, *, vocab_schema: str, etl_schema: str, home: Path) -> ConceptIndex:
    """The index of the release that is loaded in the database, compiled now if `home` does not have it.

    Raises VocabularyError when no vocabulary is loaded.
    """
    release = current_release(url, etl_schema=etl_schema)
    if release is None:
        raise VocabularyError("No vocabulary is loaded.", _LOAD_ADVICE)
    return _open(compile_index(url, release, vocab_schema=vocab_schema, home=home))


def open_index(home: Path, release: str | None = None) -> ConceptIndex:
    """An index that was compiled below `home`: the current one, or that of a release (label or content hash).

    Raises VocabularyError when there is none.
    """
    root = home / "vocabulary"
    if release is None:
        current = root / _CURRENT
        if not current.is_file():
            raise VocabularyError("No vocabulary is loaded.", _LOAD_ADVICE)
        return _open(root / current.read_text(encoding="utf-8").strip())
    for description in sorted(root.glob(f"*/{_DESCRIPTION}"), key=lambda path: path.stat().st_mtime, reverse=True):
        index = _open(description.parent)
        if release in {index.release, index.content_hash} and index.folder.name == _folder_name(index.content_hash):
            return index
    raise VocabularyError(f"There is no concept index of vocabulary release {release}.", _LOAD_ADVICE)


def _open(folder: Path) -> ConceptIndex:
    try:
        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VocabularyError(f"The concept index {folder.name} cannot be read.", _LOAD_ADVICE) from error
    return ConceptIndex(folder, description["release"], description["content_hash"])


def _folder_name(content_hash: str) -> str:
    return f"{content_hash[:16]}-{_INDEX_FORMAT}"


def _write_index(url: str, vocab_schema: str, folder: Path) -> None:
    schema = sql.Identifier(vocab_schema).as_string()
    # psycopg accepts only literal text, or bytes; this text is the project's own, and the schema's name is quoted.
    statements = _SQL_FILE.read_text(encoding="utf-8").replace("{vocab}", schema)
    ancestors = _ANCESTOR_QUERY.replace("{vocab}", schema)
    with connect(url) as connection:
        connection.execute(statements.encode())
        _write_parquet(connection, _INDEX_QUERY, INDEX_SCHEMA, folder / INDEX_FILE)
        _write_parquet(connection, _CONCEPT_QUERY, CONCEPT_SCHEMA, folder / CONCEPT_FILE)
        _write_parquet(connection, ancestors, ANCESTOR_SCHEMA, folder / ANCESTOR_FILE)
        strengths = f"SELECT {', '.join(STRENGTH_SCHEMA)} FROM {schema}.drug_strength {_VALID_STRENGTHS}"
        _write_parquet(connection, strengths, STRENGTH_SCHEMA, folder / STRENGTH_FILE)


def _write_parquet(connection: psycopg.Connection, query: str, schema: Mapping[str, pl.DataType], path: Path) -> None:
    """Stream the rows of a query into a Parquet file, in their order."""
    rows = path.with_suffix(".csv")
    copy_out = f"COPY ({query}) TO STDOUT (FORMAT csv)".encode()
    with rows.open("wb") as target, connection.cursor().copy(copy_out) as copy:
        for chunk in copy:
            target.write(chunk)
    # Without a row there is nothing to scan: polars refuses an empty file.
    frame = (
        pl.scan_csv(rows, has_header=False, schema=dict(schema))
        if rows.stat().st_size
        else pl.LazyFrame(schema=dict(schema))
    )
    frame.sink_parquet(path, row_group_size=_ROW_GROUP, statistics=True, maintain_order=True)
    rows.unlink()
