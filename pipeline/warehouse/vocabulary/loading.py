"""A download → tables beside the active ones, checked → the active release.

The rows come in one transaction with the tables that hold them, so that the server logs none of them where it may
(`wal_level` minimal) and freezes them at once; keys and indices follow when all rows are there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import psycopg
from psycopg import sql
from sqlalchemy.exc import SQLAlchemyError

from omop_schema import cdm
from omop_schema.versions import DEFAULT_CDM_VERSION
from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import VocabularyError
from pipeline.warehouse.connection import connect
from pipeline.warehouse.schema import transaction
from pipeline.warehouse.server_failures import server_failure
from pipeline.warehouse.vocabulary.carried import FIRST_CUSTOM_CONCEPT, carried_digest, carry_over
from pipeline.warehouse.vocabulary.cleaning import CleanedLines, Repair, SelectedConcepts
from pipeline.warehouse.vocabulary.download import SITE_MAP, SourceFile, VocabularyDownload, read_download
from pipeline.warehouse.vocabulary.gate import count_release, counts_of, older_than_active, reasons_against
from pipeline.warehouse.vocabulary.releases import ReleaseSchemas, VocabularyRelease, load_lock, prune_releases
from pipeline.warehouse.vocabulary.structure import (
    add_foreign_keys,
    add_keys,
    create_like,
    installed_tables,
    plain_names,
)
from pipeline.warehouse.vocabulary.switching import (
    PATIENCE_SECONDS,
    broken_references,
    content_hash,
    refuse_without_rights,
    switch_release,
)

__all__ = ["Compare", "LoadOptions", "Progress", "load_vocabulary"]

#: Called with (file name, bytes of it read so far, its size in bytes); with an empty size where no file is read.
Progress: TypeAlias = Callable[[str, int, int], None]

_CHUNK_BYTES = 1 << 20
_COPY_LINE = re.compile(r"line (\d+)")
_DUPLICATE = re.compile(r"\((?P<column>\w+)\)=\((?P<value>.*)\)")

#: For keys and indices; more is only taken where the server is set to more.
_INDEX_MEMORY_MEGABYTES = 512
_GOOD_ADVICE = "See whether the download is whole. To load it all the same: --force."


class Compare(Protocol):
    """Looks at a loaded release before it becomes active; returns more reasons against it."""

    def __call__(self, release: VocabularyRelease, active: VocabularyRelease | None) -> Sequence[str]: ...


def _nothing_to_say(release: VocabularyRelease, active: VocabularyRelease | None) -> Sequence[str]:  # noqa: ARG001
    return ()


@dataclass(frozen=True)
class LoadOptions:
    """How a download is loaded. `only`: vocabulary ids; `keep`: releases, the active one among them."""

    force: bool = False
    only: Sequence[str] | None = None
    keep: int = 2
    compare: Compare = _nothing_to_say
    #: seconds to wait for who is in the way of the switch
    patience: float = PATIENCE_SECONDS
    #: called with who that is
    waiting: Callable[[str], None] = lambda _: None


def load_vocabulary(
    url: str,
    folder: Path,
    *,
    vocab_schema: str,
    etl_schema: str,
    progress: Progress | None = None,
    options: LoadOptions | None = None,
    clock: Clock | None = None,
) -> VocabularyRelease:
    """Load an unpacked Athena download beside the active release, check it, and make it the active one.

    Files are tab-separated and unquoted: a quotation mark is data. Columns are found by their names. What they are really
    like is put right where it can be, and counted in the release's `notes` (`cleaning`): carriage returns, names and
    synonyms that are too long. The codes of CONCEPT_CPT4.csv come without names where CONCEPT.csv lacks them.
    `source_to_concept_map` is replaced only when the folder has SOURCE_TO_CONCEPT_MAP.csv. A file whose table the
    database's version of the CDM does not have is left out.

    Raises VocabularyError for a folder that is not a download, for a broken line, with its file and number, for what
    speaks against the download (`gate`, `LoadOptions.compare`) unless forced, and when somebody is in the way of the switch
    for too long. The active release is then as before.
    """
    options, clock = options or LoadOptions(), clock or SystemClock()
    schemas = ReleaseSchemas(vocab_schema, etl_schema)
    # A wrong folder is refused before a server is asked.
    read_download(folder, cdm.tables_of(DEFAULT_CDM_VERSION), only=options.only)
    with connect(url) as connection:
        _check_installed(connection, schemas)
        refuse_without_rights(connection, schemas)
        tables = installed_tables(connection, vocab_schema)
    download = read_download(folder, tables, only=options.only)
    with load_lock(url):
        prune_releases(url, schemas, keep=max(2, options.keep))
        active = _active(url, schemas, clock)
        _refuse([reason] if (reason := older_than_active(download.label, active)) else [], download, options)
        loaded = _load_beside(url, schemas, download, progress or _no_progress, clock)
        try:
            ready = _checked(url, schemas, download, loaded, active, options)
        except BaseException:
            _discard(url, schemas, loaded)
            raise
        switched = switch_release(
            url,
            schemas,
            ready,
            replace_custom=not ready.notes.get("own_custom"),
            with_map=not download.has_site_map,
            clock=clock,
            patience=options.patience,
            waiting=options.waiting,
        )
        _, left = prune_releases(url, schemas, keep=options.keep)
        return _with_warnings(url, schemas, switched.release, [*switched.warnings, *left])


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
            f"{what}: {reason}", "The vocabulary is as it was before. See to what the message names in the download."
        ) from error


def _no_progress(_file: str, _done: int, _size: int) -> None:
    pass


def _check_installed(connection: psycopg.Connection, schemas: ReleaseSchemas) -> None:
    for schema, table in ((schemas.vocab, "concept"), (schemas.etl, "vocabulary_release")):
        query = "SELECT 1 FROM pg_tables WHERE schemaname = %s AND tablename = %s"
        if connection.execute(query, (schema, table)).fetchone() is None:
            raise VocabularyError(f"The database has no table {schema}.{table}.", "Run `epic-omop db init` first.")


def _active(url: str, schemas: ReleaseSchemas, clock: Clock) -> VocabularyRelease | None:
    """The active release; a vocabulary that somebody brought in another way gets a row first, so that it stays."""
    with connect(url) as connection:
        active = schemas.current(connection)
        concept = sql.Identifier(schemas.vocab, "concept")
        if (
            active is not None
            or connection.execute(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(concept)).fetchone() is None
        ):
            return active
        counts = count_release(connection, schemas.vocab, {})
        label = _label(connection, schemas.vocab)
        digest = hashlib.sha256(f"{schemas.vocab}\0{label}\0{counts}".encode()).hexdigest()
        found = VocabularyRelease(
            label or digest[:16], clock.now(), "not loaded by epic-omop", counts.concepts, digest,
            active_since=clock.now(), vocabularies=counts.vocabularies,
        )  # fmt: skip
        schemas.save(connection, found)
        return found


def _label(connection: psycopg.Connection, schema: str) -> str:
    version = connection.execute(
        sql.SQL("SELECT vocabulary_version FROM {} WHERE vocabulary_id = 'None'").format(
            sql.Identifier(schema, "vocabulary")
        )
    ).fetchone()
    return (version[0] or "").strip() if version else ""


def _refuse(reasons: Sequence[str], download: VocabularyDownload, options: LoadOptions) -> None:
    if reasons and not options.force:
        label = f" ({download.label})" if download.label else ""
        raise VocabularyError(
            f"The download {download.folder.resolve().name}{label} is refused: {'; '.join(reasons)}.",
            f"The active release is as it was before. {_GOOD_ADVICE}",
        )


def _load_beside(
    url: str, schemas: ReleaseSchemas, download: VocabularyDownload, progress: Progress, clock: Clock
) -> VocabularyRelease:
    """All rows and keys in a new schema, in one transaction: nothing is left of it when the process dies."""
    with transaction(url) as sqlalchemy_connection:
        connection = sqlalchemy_connection.connection.driver_connection
        assert isinstance(connection, psycopg.Connection)
        active = schemas.vocab
        plain_names(connection)
        tables = installed_tables(connection, active)
        _give_memory(connection)
        fresh = schemas.free_name(connection, hashlib.sha256(str(clock.now()).encode()).hexdigest())
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(fresh)))
        connection.execute(
            sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(fresh), sql.Literal(schemas.mark))
        )
        create_like(connection, active, fresh, tables)
        copied = _copy_all(connection, download, fresh, progress)
        with _as_vocabulary_error("The keys of the vocabulary tables cannot be made"):
            progress("keys and indices", 0, 0)
            _make_keys(connection, download, active, fresh, tables)
            cdm.create_primary_keys(sqlalchemy_connection, fresh, fresh, tables=tables)
            cdm.create_indices(sqlalchemy_connection, fresh, fresh, tables=tables)
        own_custom = connection.execute(
            sql.SQL("SELECT count(*) FROM {} WHERE concept_id >= %s").format(sql.Identifier(fresh, "concept")),
            (FIRST_CUSTOM_CONCEPT,),
        ).fetchone()
        assert own_custom is not None
        carried = carry_over(connection, active, fresh, tables, with_map=not download.has_site_map, replace=False)
        with _as_vocabulary_error("The keys of the vocabulary tables cannot be made"):
            add_foreign_keys(connection, active, fresh, tables)
        progress("statistics", 0, 0)
        for table in tables:
            connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(fresh, table)))
        hashed = content_hash(copied.digest, carried_digest(connection, fresh, tables))
        release = VocabularyRelease(
            download.label or hashed[:16], clock.now(), download.folder.resolve().name, 0, hashed,
            is_current=False, state="loading", schema_name=fresh, download_hash=copied.digest,
            notes=copied.notes(download, own_custom=own_custom[0], carried=carried),
        )  # fmt: skip
        # Under a hash of its own: this content may be there already, or be the active one.
        schemas.save(connection, replace(release, content_hash=f"loading {fresh}"))
        return release


@dataclass(frozen=True)
class _Copied:
    digest: str
    repairs: list[Repair]
    left_out: int
    cpt4: int

    def notes(self, download: VocabularyDownload, *, own_custom: int, carried: int) -> dict[str, Any]:
        return {
            "repairs": [
                {"file": item.file, "what": item.what, "count": item.count, "first_line": item.first_line}
                for item in self.repairs
            ],
            "ignored": list(download.ignored),
            "selected": sorted(download.selected) if download.selected is not None else None,
            "left_out": self.left_out,
            "cpt4": self.cpt4,
            "cpt4_unreadable": download.has_unreadable_cpt4,
            "own_custom": own_custom,
            "carried": carried,
        }


def _copy_all(connection: psycopg.Connection, download: VocabularyDownload, fresh: str, progress: Progress) -> _Copied:
    selected = SelectedConcepts(download.selected) if download.selected is not None else None
    digest = hashlib.sha256()
    repairs: list[Repair] = []
    left_out = 0
    cpt4 = 0
    for file in sorted(download.files, key=lambda file: file.table != "concept"):  # whose ids the others name
        lines = CleanedLines(file, selected)
        file_hash = _copy(connection, file, lines, sql.Identifier(fresh, file.table), progress, freeze=True)
        repairs += lines.repairs.values()
        left_out += lines.left_out
        if file.table != SITE_MAP:  # a local map, and no part of the release
            digest.update(f"{file.table}\0{file_hash}\n".encode())
        if file.table == "concept" and download.cpt4 is not None:
            cpt4, file_hash = _add_cpt4(connection, download.cpt4, fresh, selected, progress)
            if cpt4:
                digest.update(f"cpt4\0{file_hash}\n".encode())
    if download.selected is not None:
        digest.update(f"only\0{','.join(sorted(download.selected))}\n".encode())
    return _Copied(digest.hexdigest(), repairs, left_out, cpt4)


def _add_cpt4(
    connection: psycopg.Connection,
    file: SourceFile,
    fresh: str,
    selected: SelectedConcepts | None,
    progress: Progress,
) -> tuple[int, str]:
    """CPT-4 concepts that CONCEPT.csv lacks, without names, so that their codes map; returns how many, and the hash."""
    concept, waiting = sql.Identifier(fresh, "concept"), sql.Identifier("pg_temp", "cpt4_concept")
    connection.execute(sql.SQL("CREATE TEMPORARY TABLE cpt4_concept (LIKE {}) ON COMMIT DROP").format(concept))
    connection.execute("ALTER TABLE pg_temp.cpt4_concept ALTER COLUMN concept_name SET DEFAULT ''")
    for column, day in (("valid_start_date", "1970-01-01"), ("valid_end_date", "2099-12-31")):
        connection.execute(f"ALTER TABLE pg_temp.cpt4_concept ALTER COLUMN {column} SET DEFAULT '{day}'")
    file_hash = _copy(connection, file, CleanedLines(file, selected), waiting, progress, freeze=False)
    # The names of a merged file stay: its rows are in CONCEPT.csv then.
    added = connection.execute(
        sql.SQL(
            "INSERT INTO {} SELECT DISTINCT ON (item.concept_id) item.* FROM {} AS item"
            " WHERE NOT EXISTS (SELECT FROM {} AS own WHERE own.concept_id = item.concept_id) ORDER BY item.concept_id"
        ).format(concept, waiting, concept)
    ).rowcount
    return added, file_hash


def _copy(
    connection: psycopg.Connection,
    file: SourceFile,
    lines: CleanedLines,
    table: sql.Composable,
    progress: Progress,
    *,
    freeze: bool,
) -> str:
    """COPY one file into a table; returns the SHA-256 of the file."""
    # QUOTE is a character that no vocabulary holds, so that quotation marks are data. FORCE_NOT_NULL: an empty
    # name is an empty text, not NULL.
    required = {item.name for item in cdm.fields(file.table) if item.required and item.datatype.startswith("varchar")}
    texts = [name for name in file.columns if name in required]
    statement = sql.SQL(
        "COPY {} ({}) FROM STDIN (FORMAT csv, DELIMITER E'\\t', QUOTE E'\\b', NULL '', ENCODING 'UTF8'{}{})"
    ).format(
        table,
        sql.SQL(", ").join(map(sql.Identifier, file.columns)),
        sql.SQL(", FREEZE") if freeze else sql.SQL(""),
        sql.SQL(", FORCE_NOT_NULL ({})").format(sql.SQL(", ").join(map(sql.Identifier, texts)))
        if texts
        else sql.SQL(""),
    )
    digest = hashlib.sha256()
    try:
        with file.path.open("rb") as source, connection.cursor().copy(statement) as copy:
            digest.update(source.read(file.header_bytes))
            for block in lines.blocks(_chunks(source, file, progress, digest)):
                copy.write(block)
    except psycopg.Error as error:
        raise server_failure(error) or _broken_line(file, lines, error) from error
    return digest.hexdigest()


def _chunks(source: BinaryIO, file: SourceFile, progress: Progress, digest: Any) -> Iterator[bytes]:
    size = file.path.stat().st_size
    done = file.header_bytes
    progress(file.path.name, done, size)
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        yield chunk
        done += len(chunk)
        progress(file.path.name, done, size)


def _broken_line(file: SourceFile, lines: CleanedLines, error: psycopg.Error) -> VocabularyError:
    context = error.diag.context or ""
    match = _COPY_LINE.search(context)
    line = lines.source_line(int(match[1])) if match else None
    where = f"{file.path.name}:{line}" if line else file.path.name
    column = re.search(r"column (\w+)", context)
    reason = error.diag.message_primary or type(error).__name__
    return VocabularyError(
        f"{where}: {reason}{f' (column {column[1]})' if column else ''}.",
        f"The vocabulary is as it was before. {_advice_for_line(file, line)}",
    )


def _advice_for_line(file: SourceFile, line: int | None) -> str:
    """What can help: another download does not, where the CPT-4 step wrote the line."""
    text = _line_of(file, line) if line else None
    if text is not None and b"\tCPT4\t" in text:
        return (
            "The line is of CPT4, which cpt.sh wrote: unpack CONCEPT.csv from the zip file again and run cpt.sh once more,"
            " or load without its names (leave CONCEPT.csv as it was unpacked, with CONCEPT_CPT4.csv beside it)."
        )
    last = "The file ends there: unpack it from the zip file again." if text is None or not text.endswith(b"\n") else ""
    return last or (
        f"Unpack {file.path.name} from the zip file again, without opening it in a spreadsheet program; if the line is the"
        " same there, take it out, or put it right, in a text editor."
    )


def _line_of(file: SourceFile, line: int) -> bytes | None:
    with file.path.open("rb") as source:
        return next((text for number, text in enumerate(source, start=1) if number == line), None)


def _make_keys(
    connection: psycopg.Connection, download: VocabularyDownload, active: str, fresh: str, tables: list[str]
) -> None:
    try:
        add_keys(connection, active, fresh, tables)
    except psycopg.errors.UniqueViolation as error:
        raise _duplicate(download, error) or error from error


def _duplicate(download: VocabularyDownload, error: psycopg.Error) -> VocabularyError | None:
    """A key that is there twice: which, and in which lines."""
    match = _DUPLICATE.search(error.diag.message_detail or "")
    table = error.diag.table_name
    file = next((item for item in download.files if item.table == table), None)
    if match is None or file is None or match["column"] not in file.columns:
        return None
    column, value = file.columns.index(match["column"]), match["value"].encode()
    lines, is_cpt4 = [], False
    with file.path.open("rb") as source:
        for number, text in enumerate(source, start=1):
            if value in text and text.rstrip(b"\r\n").split(b"\t")[column : column + 1] == [value]:
                lines.append(number)
                is_cpt4 |= b"\tCPT4\t" in text
    advice = (
        "cpt.sh was run twice: unpack CONCEPT.csv from the zip file again and run cpt.sh once."
        if is_cpt4
        else "Take one of the lines out in a text editor, or unpack the file from the zip file again."
    )
    return VocabularyError(
        f"{file.path.name}: {match['column']} {match['value']} is there {len(lines)} times, in the lines"
        f" {', '.join(map(str, lines[:5]))}.",
        f"The vocabulary is as it was before. {advice}",
    )


def _give_memory(connection: psycopg.Connection) -> None:
    """For sorting the keys; not less than the server gives already."""
    row = connection.execute(
        "SELECT setting::bigint / 1024 FROM pg_settings WHERE name = 'maintenance_work_mem'"
    ).fetchone()
    if row is not None and row[0] < _INDEX_MEMORY_MEGABYTES:
        connection.execute(f"SET LOCAL maintenance_work_mem = '{_INDEX_MEMORY_MEGABYTES}MB'")


def _checked(
    url: str,
    schemas: ReleaseSchemas,
    download: VocabularyDownload,
    loaded: VocabularyRelease,
    active: VocabularyRelease | None,
    options: LoadOptions,
) -> VocabularyRelease:
    """The release, ready to become active. Raises VocabularyError with everything that speaks against it."""
    assert loaded.schema_name is not None
    with connect(url) as connection:
        plain_names(connection)
        counts = count_release(connection, loaded.schema_name, download.versions)
        before = counts_of(connection, schemas.vocab, active) if active is not None else {}
        reasons = reasons_against(counts, before, download)
        if broken := broken_references(connection, schemas.vocab, loaded.schema_name):
            raise VocabularyError(
                f"The download {loaded.folder_label} is refused: {'; '.join(broken[:3])}.",
                "The active release is as it was before. Foreign keys of the warehouse's own tables cannot be overruled:"
                " drop them, or load a download that has these concepts.",
            )
    counted = replace(loaded, concept_count=counts.concepts, vocabularies=counts.vocabularies)
    reasons += options.compare(counted, active)
    _refuse(reasons, download, options)
    ready = replace(counted, state="ready", notes={**loaded.notes, "overruled": reasons})
    with connect(url) as connection:
        # The same content may be there from an earlier load: these tables take the place of those.
        schemas.forget(connection, f"loading {loaded.schema_name}")
        if active is None or active.content_hash != ready.content_hash:
            schemas.save(connection, ready)
    return ready


def _discard(url: str, schemas: ReleaseSchemas, loaded: VocabularyRelease) -> None:
    """Its row goes; its schema, which no row names then, with it."""
    with connect(url) as connection:
        schemas.forget(connection, f"loading {loaded.schema_name}")
    prune_releases(url, schemas, keep=1_000_000)


def _with_warnings(
    url: str, schemas: ReleaseSchemas, release: VocabularyRelease, warnings: Sequence[str]
) -> VocabularyRelease:
    warned = replace(release, notes={**release.notes, "warnings": list(warnings)})
    with connect(url) as connection:
        schemas.save(connection, warned)
    return warned
