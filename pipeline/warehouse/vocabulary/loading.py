"""A download → the vocabulary tables in PostgreSQL."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import psycopg
from psycopg import sql
from sqlalchemy.exc import SQLAlchemyError

from omop_schema import cdm
from pipeline.core.errors import VocabularyError
from pipeline.warehouse.schema import transaction
from pipeline.warehouse.server_failures import server_failure
from pipeline.warehouse.vocabulary.download import SourceFile, present_files, source_file
from pipeline.warehouse.vocabulary.releases import VocabularyRelease, record_release

__all__ = ["Progress", "load_vocabulary"]

#: Called with (file name, bytes of it read so far, its size in bytes).
Progress: TypeAlias = Callable[[str, int, int], None]

#: A site's own map is not a part of an Athena download: it stays when the folder has none.
_KEPT_TABLE = "source_to_concept_map"

_CHUNK_BYTES = 1 << 20
_COPY_LINE = re.compile(r"line (\d+)")

#: Advisory lock for loading, so that two loads come one after the other ("voca" in ASCII).
_LOAD_LOCK = 0x766F6361


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
    present = present_files(folder)
    with transaction(url) as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        _check_installed(raw, vocab_schema, etl_schema)
        tables = _installed_tables(raw, vocab_schema)
        files = [source_file(table, path) for table, path in present.items() if table in tables]
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
        return record_release(raw, folder, content_hash, vocab_schema, etl_schema)


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
    files: list[SourceFile],
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
        if file.table != _KEPT_TABLE:  # hashed as it stands in the database, whence it came
            digest.update(f"{file.table}\0{file_hash}\n".encode())
    for table in tables:
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(vocab_schema, table)))
    digest.update(_local_map_hash(connection, vocab_schema).encode())
    return digest.hexdigest()


def _copy(connection: psycopg.Connection, file: SourceFile, vocab_schema: str, progress: Progress) -> str:
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


def _chunks(source: BinaryIO, file: SourceFile, progress: Progress) -> Iterator[bytes]:
    size = file.path.stat().st_size
    done = file.header_bytes
    progress(file.path.name, done, size)
    while chunk := source.read(_CHUNK_BYTES):
        yield chunk
        done += len(chunk)
        progress(file.path.name, done, size)


def _broken_line(file: SourceFile, error: psycopg.Error) -> VocabularyError:
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


def _local_map_hash(connection: psycopg.Connection, vocab_schema: str) -> str:
    query = sql.SQL(
        """SELECT md5(coalesce(string_agg(line, chr(10) ORDER BY line COLLATE "C"), ''))
           FROM (SELECT item::text AS line FROM {} AS item) AS lines"""
    )
    row = connection.execute(query.format(sql.Identifier(vocab_schema, _KEPT_TABLE))).fetchone()
    assert row is not None
    return str(row[0])
