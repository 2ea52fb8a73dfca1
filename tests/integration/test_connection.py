"""`pipeline/warehouse/connection.py` against the embedded server and another PostgreSQL by URL."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from pipeline.core.errors import ConfigurationError, EpicOmopError, WarehouseError
from pipeline.warehouse.connection import connect, database_url, sqlalchemy_engine
from tests.command_line import CommandLine, Finished


@pytest.fixture(params=["embedded", "by URL"])
def each_database_url(request: pytest.FixtureRequest) -> str:
    name = "database_url" if request.param == "embedded" else "other_database_url"
    url: str = request.getfixturevalue(name)
    return url


def test_session_settings(each_database_url: str) -> None:
    with connect(each_database_url) as connection:
        shown = connection.execute("SELECT current_setting('application_name'), current_setting('TimeZone')").fetchone()
        connection.rollback()
        zone = connection.execute("SHOW TimeZone").fetchone()
    assert shown == ("epic-omop", "UTC")
    assert zone == ("UTC",), "the time zone must outlive a rollback"


def test_connection_begins_a_transaction(each_database_url: str) -> None:
    with connect(each_database_url) as connection:
        connection.execute("CREATE TABLE t (a int)")
        connection.rollback()
        found = connection.execute("SELECT to_regclass('t')").fetchone()
    assert found == (None,)


def test_sqlalchemy_engine(each_database_url: str) -> None:
    engine = sqlalchemy_engine(each_database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t AS SELECT 'é' AS a"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT a, current_setting('TimeZone') FROM t")).one() == ("é", "UTC")
    engine.dispose()


def test_engine_survives_the_loss_of_its_pooled_connection(database_url: str) -> None:
    engine = sqlalchemy_engine(database_url)
    with engine.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with connect(database_url) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    with engine.connect() as connection:
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() != pid
    engine.dispose()


def test_the_other_server_is_another_version(other_database_url: str, other_postgres_folder: Path | None) -> None:
    """Guards the fixture: where another PostgreSQL exists, tests by URL must really use it."""
    with connect(other_database_url) as connection:
        version = connection.info.server_version // 10000
    assert other_postgres_folder is None or f"{version}." in _version_line(other_postgres_folder)


def _version_line(folder: Path) -> str:
    return subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_given_url_is_used(other_database_url: str, scheme: str, tmp_path: Path) -> None:
    setting = other_database_url.replace("postgresql", scheme, 1)
    assert database_url(setting, tmp_path) == other_database_url
    assert list(tmp_path.iterdir()) == [], "no embedded server is made beside a given URL"


def test_given_url_keeps_its_options(other_database_url: str, tmp_path: Path) -> None:
    separator = "&" if "?" in other_database_url else "?"
    url = database_url(f"{other_database_url}{separator}application_name=nightly&connect_timeout=3", tmp_path)
    with connect(url) as connection:
        assert connection.execute("SHOW application_name").fetchone() == ("nightly",)


@pytest.mark.parametrize("url", ["mysql://u@h/d", "host=localhost dbname=x", "sqlite:///x", "h/d", ""])
def test_other_schemes_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="postgresql://"):
        database_url(url, tmp_path)


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(WarehouseError) as raised:
            database_url(f"postgresql://u:geheim@127.0.0.1:{port}/d", tmp_path)
    assert "127.0.0.1" in str(raised.value)
    assert "db status" in raised.value.advice
    assert "geheim" not in str(raised.value)


def test_wrong_password_is_not_shown(other_postgres_url: str, tmp_path: Path) -> None:
    parts = urlsplit(other_postgres_url)
    if parts.password is None:  # the embedded server, without another one, knows no passwords: a role it does not have
        url = other_postgres_url.replace("//epic_omop@", "//nobody:geheim@")
    else:
        url = other_postgres_url.replace(parts.password, "geheim")
    with pytest.raises(WarehouseError, match=r"authentication failed|does not exist") as raised:
        database_url(url, tmp_path)
    assert "geheim" not in str(raised.value)
    assert raised.value.__cause__ is None, "the driver's own error must not be shown either"


PASSWORD_WITH_MARKS = st.text("@:/?#%[] \"'\\ab", min_size=4, max_size=12).map(lambda marks: f"xQ{marks}Zy")


@given(password=PASSWORD_WITH_MARKS)
def test_no_part_of_a_badly_encoded_password_is_shown(password: str) -> None:
    """Unencoded marks make libpq take a part of the password for the host or port, and name it in its error."""
    with pytest.raises(EpicOmopError) as raised:
        database_url(f"postgresql://u:{password}@127.0.0.1:9/d", Path("/nonexistent"))
    assert "xQ" not in str(raised.value)
    assert "Zy" not in str(raised.value)


def test_encoded_password_works(other_postgres_url: str, tmp_path: Path) -> None:
    password = "a@b:c/d?e#f%g"
    with connect(other_postgres_url) as connection:
        connection.execute("DROP ROLE IF EXISTS marked")
        connection.execute(f"CREATE ROLE marked LOGIN PASSWORD '{password}'")
    parts = urlsplit(other_postgres_url)
    if parts.password is None:  # the embedded server admits its owner alone, whatever the password
        url = other_postgres_url.replace("//epic_omop@", f"//epic_omop:{quote(password, safe='')}@")
    else:
        url = other_postgres_url.replace(f"customer:{parts.password}", f"marked:{quote(password, safe='')}")
    with connect(database_url(url, tmp_path)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert psycopg.conninfo.conninfo_to_dict(url)["password"] == password


def test_old_server_is_refused(tmp_path: Path) -> None:
    with server_that_claims("13.22") as port, pytest.raises(WarehouseError, match="PostgreSQL 13") as raised:
        database_url(f"postgresql://u:geheim@127.0.0.1:{port}/d?sslmode=disable&gssencmode=disable", tmp_path)
    assert "14 or newer" in str(raised.value)
    assert "geheim" not in str(raised.value)


@contextmanager
def server_that_claims(version: str) -> Iterator[int]:
    """A listener that speaks the start of PostgreSQL's protocol: no server this old can be had any more."""
    parameter = b"server_version\0" + version.encode() + b"\0"
    answer = (
        b"R" + (8).to_bytes(4, "big") + (0).to_bytes(4, "big")  # AuthenticationOk
        + b"S" + (4 + len(parameter)).to_bytes(4, "big") + parameter  # ParameterStatus
        + b"Z" + (5).to_bytes(4, "big") + b"I"  # ReadyForQuery
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(answer)
                client.recv(4096)

        thread = threading.Thread(target=answer_once)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def run_command(home: Path, *arguments: str, url: str | None = None) -> Finished:
    """`epic-omop db …` in a process of its own; errors come out as class and text, as the command line shows them."""
    program = (
        "import sys\n"
        "from pipeline.commands.database import app\n"
        "from pipeline.core.errors import EpicOmopError\n"
        "try:\n    app(sys.argv[1:])\n"
        "except EpicOmopError as error:\n    sys.exit(f'{type(error).__name__}: {error}')\n"
    )
    return CommandLine(home, url or "").run(*arguments, code=None, program=(sys.executable, "-c", program))


def test_psql_and_status_by_url(other_database_url: str, tmp_path: Path) -> None:
    shown = run_command(
        tmp_path, "psql", "-XAtc", "SELECT current_setting('server_version_num')::int >= 140000", url=other_database_url
    )
    assert (shown.out.strip(), shown.err) == ("t", "")
    status = run_command(tmp_path, "status", url=other_database_url)
    assert "running" in status.out
    password = urlsplit(other_database_url).password
    assert password is None or password not in status.out


@pytest.mark.parametrize("command", ["stop", "serve"])
def test_a_given_server_is_never_stopped_or_reconfigured(command: str, other_database_url: str, tmp_path: Path) -> None:
    refused = run_command(tmp_path, command, url=other_database_url)
    assert refused.code != 0
    assert "UsageError: EPIC_OMOP_DATABASE_URL is set" in refused.err


def test_init_makes_the_schemas_once(other_database_url: str, tmp_path: Path) -> None:
    first = run_command(tmp_path, "init", url=other_database_url)
    assert (first.code, first.err) == (0, "")
    assert "in place" in first.out
    with connect(other_database_url) as connection:
        found = connection.execute("SELECT to_regclass('cdm.person') IS NOT NULL").fetchone()
    assert found == (True,)
    assert "nothing was changed" in run_command(tmp_path, "init", url=other_database_url).out


def test_embedded_server_by_commands(server_home: Path) -> None:
    """Each command is a process of its own: what one starts, the next finds."""
    assert "absent" in run_command(server_home, "status").out
    url = run_command(server_home, "url").out.strip()
    with connect(url) as connection:
        connection.execute("CREATE TABLE t AS SELECT 5 AS a")
    assert run_command(server_home, "psql", "--", "-XAtc", "SELECT a FROM t").out == "5\n"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    served = run_command(server_home, "serve", "--port", str(port))
    assert f"127.0.0.1:{port}" in served.out
    status = run_command(server_home, "status").out
    assert f"127.0.0.1 port {port}" in status
    assert "running" in status
    assert "has stopped" in run_command(server_home, "stop").out
    assert "was not running" in run_command(server_home, "stop").out
    status = run_command(server_home, "status").out
    assert "stopped" in status
    assert "off" in status
