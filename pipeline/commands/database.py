"""`epic-omop db`: the warehouse's schemas and its embedded server, for people.

Only what a terminal needs is here; the work is done in `pipeline/warehouse`.
"""

from __future__ import annotations

import os
import shutil
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.output import Column, JsonOption, Listing, print_json, print_listing
from pipeline.commands.terminal import Terminal, document, echo
from pipeline.core.errors import UsageError

if TYPE_CHECKING:
    from pipeline.core.settings import Settings
    from pipeline.warehouse.embedded.server import EmbeddedServer

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="The OMOP database: make its schemas, get its URL, look into it, stop it.\n\n"
    "Without EPIC_OMOP_DATABASE_URL an embedded PostgreSQL server is used. It starts when it is needed "
    "and stays up until `epic-omop db stop`.",
)


class Role(StrEnum):
    omop_reader = "omop_reader"
    omop_steward = "omop_steward"
    omop_auditor = "omop_auditor"
    omop_etl = "omop_etl"


@app.command()
def init() -> None:
    """Make the schemas cdm, vocab and etl with their tables, or bring them up to date. Harmless to repeat.

    Also the roles omop_reader, omop_steward, omop_auditor and omop_etl (docs/security.md); where this database user may
    not, their SQL is printed for someone who may.

    Example: epic-omop db init
    """
    from pipeline.warehouse.roles import Warehouse, install_roles, role_script
    from pipeline.warehouse.schema import install_schemas, schema_names

    settings = _settings()
    url = _url(settings)
    report = install_schemas(url, **schema_names(settings))
    warehouse = Warehouse.of(settings)
    if not install_roles(url, warehouse):
        echo("This database user may not make roles. Someone who may runs this in the warehouse's database:", err=True)
        document(role_script(warehouse))
    if report.changed:
        echo("The schemas are in place. Next: `epic-omop vocabulary load FOLDER`.")
    else:
        echo("The schemas were in place already; nothing was changed.")


@app.command()
def upgrade() -> None:
    """Bring the database of an earlier release to this one, and to the OMOP CDM that EPIC_OMOP_CDM_VERSION says, in place.

    New tables and columns come, empty: `epic-omop vocabulary load` fills the former, `epic-omop remap` the latter. There is
    no way back but a backup: make one first (`epic-omop backup FOLDER`). Harmless to repeat.

    Example: epic-omop db upgrade
    """
    from pipeline.warehouse.schema import schema_names, upgrade_schemas

    settings = _settings()
    report = upgrade_schemas(_url(settings), **schema_names(settings))
    if report.installed.etl_upgraded:
        echo(f"The etl schema is at revision {report.installed.etl_revision} now. Its rows have stayed as they are.")
    if report.before is report.after:
        echo(f"The database holds the OMOP CDM {report.after} already.")
        return
    echo(
        f"The database holds the OMOP CDM {report.after} now: {report.columns} columns and {report.installed.tables} tables"
        f" are new since {report.before}. They are empty."
    )
    echo(
        "Next: `epic-omop vocabulary load FOLDER` with a download that has the new tables' files, if you have one, then"
    )
    for site in settings.sites or ("NAME",):
        echo(f"      `epic-omop remap --site {site}`")


@app.command()
def grant(
    role: Annotated[Role, typer.Argument(help="What the user may do.")],
    user: Annotated[str, typer.Argument(help="A user of the database server; it must exist.")],
) -> None:
    """Let a database user read the CDM, see to dead letters, read the access log, or load (docs/security.md).

    Where this database user may not grant that, the SQL is printed for someone who may, with exit code 1.

    Example: epic-omop db grant omop_reader maria
    """
    from psycopg.conninfo import conninfo_to_dict

    from pipeline.warehouse.roles import Warehouse, grant_role, grant_script

    settings = _settings()
    url, warehouse = _url(settings), Warehouse.of(settings)
    if grant_role(url, warehouse, role.value, user):
        echo(f"{user} is a member of {warehouse.role(role.value)}.")
        return
    echo("This database user may not grant that. Someone who may runs this:", err=True)
    document(grant_script(str(conninfo_to_dict(url).get("dbname", "postgres")), warehouse, role.value, user))
    raise typer.Exit(1)


@app.command()
def url() -> None:
    """Print the database's URL, for psql, psycopg and others; starts the embedded server if need be.

    The URL of a server of your own is printed as it was set, with its password if it has one.

    Example: epic-omop db url
    """
    echo(_url(_settings()))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context) -> None:
    """Open psql on the database. What follows is passed on: `epic-omop db psql -- -c 'select 1'`.

    Example: epic-omop psql -c "SELECT count(*) FROM cdm.person"
    """
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    from pipeline.warehouse.access_looks import record_look
    from pipeline.warehouse.embedded.binaries import installed_binaries
    from pipeline.warehouse.runtime import Runtime

    settings = _settings()
    parameters = conninfo_to_dict(_url(settings))
    record_look(Runtime(settings), "psql", required=False)
    password = parameters.pop("password", None)
    environment = dict(os.environ)
    if password:  # not among the arguments, which every user of the machine can read
        environment["PGPASSWORD"] = str(password)
    program = shutil.which("psql") or installed_binaries().program("psql")
    arguments = ["psql", f"--dbname={make_conninfo('', **parameters)}", *context.args]
    os.execve(program, arguments, environment)  # noqa: S606 - no shell, and psql takes over the terminal


@app.command()
def stop() -> None:
    """Stop the embedded server, and with it TCP access. Sessions end; open transactions are rolled back.

    Example: epic-omop db stop
    """
    stopped = _embedded(_settings()).stop()
    echo("The embedded server has stopped." if stopped else "The embedded server was not running.")


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Say which database is used, whether it answers, and where its data is.

    Example: epic-omop db status --json
    """
    settings = _settings()
    rows = _own_server(settings) if settings.database_url is not None else _embedded_server(settings)
    if as_json:
        print_json(rows)
        return
    columns = [Column(name, name, "path") for name, value in rows.items() if value is not None]
    listing = Listing("", columns, [[value for value in rows.values() if value is not None]], stacked=True)
    print_listing(Terminal(highlight=False), listing)


def _embedded_server(settings: Settings) -> dict[str, str | int | None]:
    state = _embedded(settings).status()
    return {
        "server": f"embedded PostgreSQL {state.major_version or ''}".strip(),
        "state": state.state,
        "url": state.url,
        "process": state.pid,
        "account": state.account,
        "tcp": f"{state.tcp.host} port {state.tcp.port}" if state.tcp else "off",
        "folder": str(state.folder),
        "log": str(state.log),
    }


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="IP address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 5432,
) -> None:
    """Let other programs reach the embedded server by TCP, with a password, until `epic-omop db stop`.

    They log in as a role that may read the CDM and the vocabulary (omop_reader) and make schemas of its own; members of
    omop_steward and omop_auditor may log in as well (`db grant`). Nothing is encrypted on the way:
    on another address than the loopback's, patient data and results can be read by whoever listens on the network.

    Example: epic-omop db serve --port 5433
    """
    from pipeline.warehouse.access_looks import record_look
    from pipeline.warehouse.embedded.folder import CLIENT_ROLE
    from pipeline.warehouse.roles import Warehouse, grant_role, install_roles
    from pipeline.warehouse.runtime import Runtime
    from pipeline.warehouse.schema import ensure_schemas, schema_names

    settings = _settings()
    server, warehouse = _embedded(settings), Warehouse.of(settings)
    access = server.serve_tcp(host, port)
    own_url = server.ensure_running()
    ensure_schemas(own_url, **schema_names(settings))
    install_roles(own_url, warehouse)
    grant_role(own_url, warehouse, "omop_reader", CLIENT_ROLE)
    record_look(Runtime(settings), "serve", detail=f"port {port}")
    echo(f"url       {access.url}")
    echo(f"password  in the file {access.password_file}")
    if host not in ("127.0.0.1", "::1", "localhost"):
        echo("Warning: the connection is not encrypted. Use it on a network you trust only.", err=True)


def _settings() -> Settings:
    from pipeline.core.settings import load_settings

    return load_settings()


def _url(settings: Settings) -> str:
    from pipeline.warehouse.connection import database_url

    return database_url(settings.database_url, settings.home)


def _embedded(settings: Settings) -> EmbeddedServer:
    from pipeline.warehouse.embedded.server import EmbeddedServer

    if settings.database_url is not None:
        raise UsageError(
            "EPIC_OMOP_DATABASE_URL is set: that server is not epic-omop's to start or stop.",
            "Unset it to work with the embedded server.",
        )
    return EmbeddedServer(settings.home)


def _own_server(settings: Settings) -> dict[str, str | int | None]:
    from pipeline.warehouse.connection import connect

    with connect(_url(settings)) as connection:
        version = connection.info.parameter_status("server_version")
        return {
            "server": f"PostgreSQL {version}, named by EPIC_OMOP_DATABASE_URL",
            "state": "running",
            "host": connection.info.host,
            "port": connection.info.port,
            "database": connection.info.dbname,
            "account": connection.info.user,
        }
