"""Installs the three schemas: `cdm` and `vocab` from `omop_schema.cdm`, `etl` through Alembic.

What the tables are is described in `omop_schema`; here is only the order of things. Everything happens in one
transaction under an advisory lock, so that an interrupted installation leaves nothing behind and two processes may
install at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

import psycopg
from psycopg import sql
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import SQLAlchemyError

import omop_schema
from omop_schema import cdm as cdm_tables
from omop_schema import etl as etl_tables
from omop_schema.versions import DEFAULT_CDM_VERSION, CdmVersion
from pipeline.core.errors import EpicOmopError, WarehouseError
from pipeline.core.settings import Settings
from pipeline.warehouse.cdm_version import database_version, refuse_other_version, version_concept
from pipeline.warehouse.connection import connect, sqlalchemy_engine
from pipeline.warehouse.export_jobs import lock_warehouse
from pipeline.warehouse.roles import refresh_grants
from pipeline.warehouse.server_failures import server_failure

__all__ = [
    "InstallReport", "SchemaNames", "UpgradeReport", "ensure_schemas", "install_schemas", "known_revisions",
    "schema_differences",
    "schema_names", "transaction", "upgrade_schemas",
]  # fmt: skip

_MIGRATIONS = Path(omop_schema.__file__).resolve().parent / "migrations"

#: Key of the advisory lock; any fixed number does ("omop" in ASCII).
_LOCK = 0x6F6D6F70


@dataclass(frozen=True)
class InstallReport:
    """What an installation added; all zero and False where everything was there already."""

    tables: int
    primary_keys: int
    indices: int
    constraints: int
    etl_upgraded: bool
    #: The Alembic revision of the etl schema afterwards.
    etl_revision: str

    @property
    def changed(self) -> bool:
        return bool(self.tables or self.primary_keys or self.indices or self.constraints or self.etl_upgraded)


@dataclass(frozen=True)
class UpgradeReport:
    """What an upgrade to another version of the CDM did."""

    before: CdmVersion
    after: CdmVersion
    columns: int
    installed: InstallReport


class SchemaNames(TypedDict):
    """What an installation needs to know of an instance."""

    cdm: str
    vocab: str
    etl: str
    version: CdmVersion


def schema_names(settings: Settings) -> SchemaNames:
    """Of these settings."""
    return SchemaNames(
        cdm=settings.cdm_schema, vocab=settings.vocab_schema, etl=settings.etl_schema, version=settings.cdm_version
    )


def install_schemas(
    url: str,
    *,
    cdm: str,
    vocab: str,
    etl: str,
    version: CdmVersion = DEFAULT_CDM_VERSION,
    include_vocabulary_constraints: bool = False,
) -> InstallReport:
    """Create or complete the schemas in the database at `url` (libpq URL); idempotent.

    Foreign keys to vocabulary tables are made only on request: a vocabulary is replaced in bulk.
    Raises WarehouseError when the server refuses, ConfigurationError for a database of another version of the CDM.
    """
    with _installation(url, cdm, vocab, etl) as connection:
        refuse_other_version(_server(connection), cdm, version)
        return _install(connection, cdm, vocab, etl, version, include_vocabulary_constraints)


def upgrade_schemas(url: str, *, cdm: str, vocab: str, etl: str, version: CdmVersion) -> UpgradeReport:
    """Bring a database of an older version of the CDM to this one, in place: the columns and tables that are new come,
    empty, and `cdm_source` says so. Rows get their values when they are mapped again. A publication that is under way is
    waited for.

    Raises WarehouseError where there is no warehouse or the server refuses, ConfigurationError for one of a newer version.
    """
    with _installation(url, cdm, vocab, etl) as connection:
        server = _server(connection)
        before = database_version(server, cdm)
        if before is None:
            raise WarehouseError("The database holds no warehouse yet.", "Make its schemas with `epic-omop db init`.")
        if version.is_before(before):
            refuse_other_version(server, cdm, version)
        server.execute(sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(etl)))
        lock_warehouse(server)
        server.execute("SET LOCAL search_path TO DEFAULT")
        columns = cdm_tables.add_columns(connection, cdm, vocab, version)
        report = _install(connection, cdm, vocab, etl, version, include_vocabulary_constraints=False)
        if before is not version:
            concept = version_concept(server, vocab, version)
            server.execute(
                sql.SQL("UPDATE {} SET cdm_version = %s, cdm_version_concept_id = %s").format(
                    sql.Identifier(cdm, "cdm_source")
                ),
                (version.label, concept),
            )
        return UpgradeReport(before, version, columns, report)


@contextmanager
def _installation(url: str, cdm: str, vocab: str, etl: str) -> Iterator[Connection]:
    """The transaction in which schemas are changed, one at a time. Raises WarehouseError when the server refuses."""
    try:
        with transaction(url) as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            yield connection
    except EpicOmopError:
        raise
    except (SQLAlchemyError, psycopg.Error) as error:
        failure = server_failure(error)
        if failure is not None:
            raise failure from error
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise WarehouseError(
            f"The schemas {cdm}, {vocab} and {etl} cannot be installed: {reason}",
            "The database user must own the schemas, or be allowed to create them.",
        ) from error


def ensure_schemas(url: str, *, cdm: str, vocab: str, etl: str, version: CdmVersion = DEFAULT_CDM_VERSION) -> None:
    """As `install_schemas`, for the beginning of every command: an installed database costs two queries.

    An installation leaves its mark: what it installed, and how many tables and indices there were then. Where either
    is no longer so, everything is looked at again. Raises WarehouseError when the server refuses, ConfigurationError for a
    database of another version of the CDM.
    """
    with connect(url) as connection:
        found = connection.execute(
            "SELECT obj_description(to_regclass(%s), 'pg_class')",
            (sql.Identifier(etl, "alembic_version").as_string(connection),),
        ).fetchone()
        mark = _mark(cdm, vocab, etl, version, _relations(connection, cdm, vocab, etl))
        complete = found is not None and found[0] == mark
    if not complete:
        install_schemas(url, cdm=cdm, vocab=vocab, etl=etl, version=version)


def known_revisions() -> set[str]:
    """The Alembic revisions of the etl schema that this program knows."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}


def schema_differences(url: str, *, etl: str) -> list[Any]:
    """What Alembic would still have to change in the `etl` schema: empty unless tables and revisions disagree."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    def in_schema(_: Any, name: str | None, kind: str, *__: Any) -> bool:
        return name == etl if kind == "schema" else True

    with transaction(url) as connection:
        options = {
            "include_schemas": True,
            "include_name": lambda name, kind, _: in_schema(None, name, kind),
            "version_table_schema": etl,
            "compare_type": True,
        }
        migration = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(migration, etl_tables.build_metadata(etl)))


@contextmanager
def transaction(url: str) -> Iterator[Connection]:
    """A SQLAlchemy connection in a transaction that is committed at the end and rolled back on an exception."""
    engine = sqlalchemy_engine(url)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def _install(
    connection: Connection, cdm: str, vocab: str, etl: str, version: CdmVersion, include_vocabulary_constraints: bool
) -> InstallReport:
    for schema in dict.fromkeys((cdm, vocab, etl)):
        _create_schema(connection, schema)
    before = _table_count(connection, cdm, vocab)
    cdm_tables.create_tables(connection, cdm, vocab, version)
    tables = _table_count(connection, cdm, vocab) - before
    primary_keys = cdm_tables.create_primary_keys(connection, cdm, vocab)
    indices = cdm_tables.create_indices(connection, cdm, vocab)
    constraints = cdm_tables.create_constraints(
        connection, cdm, vocab, include_vocabulary_constraints=include_vocabulary_constraints
    )
    old_revision = _revision(connection, etl)
    _upgrade(connection, cdm, etl)
    for statement in etl_tables.view_statements(etl):
        connection.exec_driver_sql(statement)
    revision = _revision(connection, etl)
    assert revision is not None
    refresh_grants(_server(connection), cdm=cdm, vocab=vocab, etl=etl)
    _leave_mark(connection, cdm, vocab, etl, version)
    return InstallReport(tables, primary_keys, indices, constraints, revision != old_revision, revision)


def _create_schema(connection: Connection, schema: str) -> None:
    # CREATE SCHEMA IF NOT EXISTS needs the right to create even where the schema exists: a customer's database user
    # often owns prepared schemas and nothing more.
    exists = connection.execute(text("SELECT 1 FROM pg_namespace WHERE nspname = :schema"), {"schema": schema}).first()
    if exists is None:
        quoted = connection.dialect.identifier_preparer.quote(schema)
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted}")


def _table_count(connection: Connection, cdm: str, vocab: str) -> int:
    inspector = inspect(connection)
    found = {(schema, table) for schema in (cdm, vocab) for table in inspector.get_table_names(schema=schema)}
    own = {(vocab if table in cdm_tables.VOCABULARY_TABLES else cdm, table) for table in cdm_tables.TABLES}
    return len(found & own)


def _leave_mark(connection: Connection, cdm: str, vocab: str, etl: str, version: CdmVersion) -> None:
    """The mark of a whole installation is the comment on Alembic's table, which is ours: it goes where the data goes."""
    server = _server(connection)
    mark = _mark(cdm, vocab, etl, version, _relations(server, cdm, vocab, etl))
    table = sql.Identifier(etl, "alembic_version")
    server.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(table, sql.Literal(mark)))


def _server(connection: Connection) -> psycopg.Connection:
    driver: psycopg.Connection = connection.connection.driver_connection  # type: ignore[assignment]  # psycopg's own
    return driver


def _mark(cdm: str, vocab: str, etl: str, version: CdmVersion, relations: int) -> str:
    return f"epic-omop {_definition()} CDM {version} in {cdm}, {vocab}, {etl}: {relations} relations"


def _relations(connection: psycopg.Connection, cdm: str, vocab: str, etl: str) -> int:
    """Tables, indices and views in the schemas, whoever made them."""
    count = connection.execute(
        "SELECT count(*) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = ANY(%s)",
        ([cdm, vocab, etl],),
    ).fetchone()
    assert count is not None
    return int(count[0])


@cache
def _definition() -> str:
    """Hash of everything that says what the schemas are."""
    root = Path(omop_schema.__file__).resolve().parent
    digest = hashlib.sha256()
    for file in sorted([*root.rglob("*.py"), *root.rglob("*.csv"), Path(__file__)]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _revision(connection: Connection, etl: str) -> str | None:
    # Imported where it is needed: most commands find everything installed.
    from alembic.runtime.migration import MigrationContext

    return MigrationContext.configure(connection, opts={"version_table_schema": etl}).get_current_revision()


def _upgrade(connection: Connection, cdm: str, etl: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["cdm_schema"] = cdm
    config.attributes["etl_schema"] = etl
    command.upgrade(config, "head")
