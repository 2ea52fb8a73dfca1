"""`epic-omop db`: the warehouse's schemas and its embedded server, for people.

Only what a terminal needs is here; the work is done in `pipeline/warehouse`.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.terminal import echo
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.settings import Settings
    from pipeline.warehouse.embedded import EmbeddedServer

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="The OMOP database: make its schemas, get its URL, look into it, stop it.\n\n"
    "Without EPIC_OMOP_DATABASE_URL an embedded PostgreSQL server is used. It starts when it is needed "
    "and stays up until `epic-omop db stop`.",
)


@app.command()
def init() -> None:
    """Make the schemas cdm, vocab and etl with their tables, or bring them up to date. Harmless to repeat."""
    from pipeline.warehouse.schema import install_schemas

    settings = _settings()
    report = install_schemas(
        _url(settings), cdm=settings.cdm_schema, vocab=settings.vocab_schema, etl=settings.etl_schema
    )
    if report.changed:
        echo("The schemas are in place. Next: `epic-omop vocabulary load FOLDER`.")
    else:
        echo("The schemas were in place already; nothing was changed.")


@app.command()
def url() -> None:
    """Print the database's URL, for psql, psycopg and others; starts the embedded server if need be.

    The URL of a server of your own is printed as it was set, with its password if it has one.
    """
    echo(_url(_settings()))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context) -> None:
    """Open psql on the database. What follows is passed on: `epic-omop db psql -- -c 'select 1'`."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    from pipeline.warehouse.postgres_binaries import installed_binaries

    parameters = conninfo_to_dict(_url(_settings()))
    password = parameters.pop("password", None)
    environment = dict(os.environ)
    if password:  # not among the arguments, which every user of the machine can read
        environment["PGPASSWORD"] = str(password)
    program = shutil.which("psql") or installed_binaries().program("psql")
    arguments = ["psql", f"--dbname={make_conninfo('', **parameters)}", *context.args]
    os.execve(program, arguments, environment)  # noqa: S606 - no shell, and psql takes over the terminal


@app.command()
def stop() -> None:
    """Stop the embedded server, and with it TCP access. Sessions end; open transactions are rolled back."""
    stopped = _embedded(_settings()).stop()
    echo("The embedded server has stopped." if stopped else "The embedded server was not running.")


@app.command()
def status() -> None:
    """Say which database is used, whether it answers, and where its data is."""
    settings = _settings()
    if settings.database_url is not None:
        _show_own_server(settings)
        return
    state = _embedded(settings).status()
    rows = {
        "server": f"embedded PostgreSQL {state.major_version or ''}".strip(),
        "state": state.state,
        "url": state.url,
        "process": state.pid,
        "account": state.account,
        "tcp": f"{state.tcp.host} port {state.tcp.port}" if state.tcp else "off",
        "folder": state.folder,
        "log": state.log,
    }
    for name, value in rows.items():
        if value is not None:
            echo(f"{name:<8} {value}")


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="IP address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 5432,
) -> None:
    """Let other programs reach the embedded server by TCP, with a password, until `epic-omop db stop`.

    They log in as a role that may read everything and make schemas of its own. Nothing is encrypted on the way:
    on another address than the loopback's, patient data and results can be read by whoever listens on the network.
    """
    access = _embedded(_settings()).serve_tcp(host, port)
    echo(f"url       {access.url}")
    echo(f"password  in the file {access.password_file}")
    if host not in ("127.0.0.1", "::1", "localhost"):
        echo("Warning: the connection is not encrypted. Use it on a network you trust only.", err=True)


def _settings() -> Settings:
    from pipeline.settings import load_settings

    return load_settings()


def _url(settings: Settings) -> str:
    from pipeline.warehouse.connection import database_url

    return database_url(settings.database_url, settings.home)


def _embedded(settings: Settings) -> EmbeddedServer:
    from pipeline.warehouse.embedded import EmbeddedServer

    if settings.database_url is not None:
        raise UsageError(
            "EPIC_OMOP_DATABASE_URL is set: that server is not epic-omop's to start or stop.",
            "Unset it to work with the embedded server.",
        )
    return EmbeddedServer(settings.home)


def _show_own_server(settings: Settings) -> None:
    from pipeline.warehouse.connection import connect

    with connect(_url(settings)) as connection:
        version = connection.info.parameter_status("server_version")
        echo(f"server   PostgreSQL {version}, named by EPIC_OMOP_DATABASE_URL")
        echo("state    running")
        echo(f"host     {connection.info.host} port {connection.info.port}")
        echo(f"database {connection.info.dbname} as {connection.info.user}")
