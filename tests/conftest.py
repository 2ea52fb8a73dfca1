"""Fixtures that every test may use: real PostgreSQL servers, and a fresh database for each test.

One embedded server serves the whole session, also under pytest-xdist: its workers start it together, and the
main process stops it at the end. A second server, such as the operating system's, is used by URL as a customer's
would be: EPIC_OMOP_TEST_POSTGRES_BIN names its `bin` folder, else the newest of /usr/lib/postgresql is taken.
The report's last line says which servers were used; without a second one, `other_postgres_url` is the embedded one.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
from filelock import FileLock
from hypothesis import settings
from psycopg import sql

from pipeline.core.clock import SystemClock
from pipeline.core.errors import WarehouseError
from pipeline.warehouse.embedded.binaries import Account, server_account
from pipeline.warehouse.embedded.server import EmbeddedServer
from tests.databases import (
    Prepared,
    fresh_database,
    has_room,
    install,
    install_with_demo_vocabulary,
    keep_in_memory,
    prepared,
)
from tests.leftovers import SESSION_VARIABLE, end_leftovers
from tests.property_examples import DEEP
from tests.requirement_results import RequirementResults, note_requirements

# A machine that is busy is no fault of an example: time is never what a property test is about.
settings.register_profile("usual", deadline=None)
# Hours of histories: `pytest --hypothesis-profile=deep`.
settings.register_profile(DEEP, deadline=None, max_examples=300)
settings.load_profile("usual")

_HOME_VARIABLE = "EPIC_OMOP_TEST_HOME"
_HOME_PREFIX = "epic-omop-test-"
_TEMPORARY = Path("/tmp")
#: Whoever drops a table or a database looks through all of them: gigabytes would be searched for a few pages.
_SHARED_BUFFERS = "64MB"
_OF_TESTS = {
    "shared_buffers": _SHARED_BUFFERS,
    **dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes", "autovacuum"), "off"),
}
#: Linux's file system in memory: a database has some thousand files, and tests make and drop hundreds of databases.
_MEMORY = Path("/dev/shm")
#: Into how many parts the tests with the mark `deep` are divided; which one runs today: main process and workers agree.
_DEEP_PARTS = 3
#: Tests that take more than some seconds each on a busy machine: they share `make test` by turns, like the mark `deep`, and
#: all run in `make test-deep`.
_LONG_TESTS = frozenset(Path(__file__).with_name("long_tests.txt").read_text(encoding="utf-8").split())
_PART_VARIABLE = "EPIC_OMOP_TEST_DEEP_PART"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--requirements-json", type=Path, metavar="FILE", help="write what came of marked requirements")
    parser.addoption("--all-deep", action="store_true", help="all tests with the mark deep, not today's part of them")
    random = parser.getgroup("random nights", "what tests/faults/test_random_nights.py runs")
    random.addoption(
        "--fault-seed", type=int, default=1, metavar="N", help="the history: world, kills, and their order"
    )
    random.addoption("--fault-nights", type=int, default=3, metavar="N", help="how many nights")
    random.addoption("--fault-kills", type=int, default=2, metavar="N", help="how many kills, spread over the nights")


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    if config.getoption("dist") != "loadfile":
        return None
    from tests.scheduling import FilesAndParts

    return FilesAndParts(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    note_requirements(items)
    for item in items:
        if item.nodeid.partition("[")[0] in _LONG_TESTS:
            item.add_marker(pytest.mark.deep)
    named = any("::" in argument for argument in config.args)
    if not (config.getoption("--all-deep") or config.option.markexpr or named):
        _leave_out_deep(config, items)


def _leave_out_deep(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the tests with the mark `deep`, keep the part whose turn it is: one of each `_DEEP_PARTS` in their order."""
    part = int(os.environ[_PART_VARIABLE])
    deep = [item for item in items if item.get_closest_marker("deep")]
    left_out = {item for number, item in enumerate(deep) if number % _DEEP_PARTS != part}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def pytest_configure(config: pytest.Config) -> None:
    """In the main process, name the session's home; workers inherit the variable. Nothing is started yet."""
    if not hasattr(config, "workerinput"):
        if config.getoption("--requirements-json"):
            config.pluginmanager.register(RequirementResults(config.getoption("--requirements-json").absolute()))
        os.environ[_PART_VARIABLE] = str(SystemClock().now().timetuple().tm_yday % _DEEP_PARTS)
        _remove_homes_of_dead_sessions()
        os.environ["PYTHONFAULTHANDLER"] = "1"  # programs that tests start show their stacks when they crash
        os.environ[_HOME_VARIABLE] = tempfile.mkdtemp(prefix=f"{_HOME_PREFIX}{os.getpid()}-", dir=_TEMPORARY)
        os.environ[SESSION_VARIABLE] = Path(os.environ[_HOME_VARIABLE]).name
        if config.option.basetemp is None and has_room(_MEMORY):
            folder = _MEMORY / Path(os.environ[_HOME_VARIABLE]).name
            folder.mkdir(mode=0o755)
            config.option.basetemp = folder / "tmp"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """In the main process, when all workers have ended: a session that leaves processes behind has failed."""
    yield
    if not hasattr(session.config, "workerinput") and _HOME_VARIABLE in os.environ:
        remove_server(Path(os.environ.pop(_HOME_VARIABLE)))
        if left := end_leftovers(os.environ.pop(SESSION_VARIABLE)):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            print("\nTests left processes behind, which were killed now:", *left, sep="\n  ")


def pytest_unconfigure(config: pytest.Config) -> None:
    """In the main process, which ends last, stop the session's server and delete its data."""
    if not hasattr(config, "workerinput") and _HOME_VARIABLE in os.environ:
        remove_server(Path(os.environ.pop(_HOME_VARIABLE)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which servers the tests used, and which deep tests: what is missing is never passed over in silence."""
    part = int(os.environ[_PART_VARIABLE]) + 1
    terminalreporter.write_line(
        f"Deep tests: part {part} of {_DEEP_PARTS}, by the day of the year (--all-deep, `make test-deep`: all)"
    )
    folder = find_other_postgres()
    other = folder or "embedded as well, because there is no other (EPIC_OMOP_TEST_POSTGRES_BIN)"
    terminalreporter.write_line(f"PostgreSQL: embedded; by URL: {other}")


@pytest.fixture
def server_home() -> Iterator[Path]:
    """A home of its own for a test that starts, kills or stops an embedded server; removed with its server."""
    with temporary_home() as home:
        yield home


@pytest.fixture(scope="session")
def make_home() -> Callable[[], AbstractContextManager[Path]]:
    """For fixtures of another scope than `server_home`: a context manager that gives such a home."""
    return temporary_home


@contextmanager
def temporary_home() -> Iterator[Path]:
    """Not pytest's `tmp_path`: its folders are closed to the other accounts that some tests use."""
    home = Path(tempfile.mkdtemp(prefix=f"{os.environ[SESSION_VARIABLE]}-", dir=_TEMPORARY))
    try:
        yield home
    finally:
        remove_server(home)


def remove_server(home: Path) -> None:
    """Stop a test's embedded server and delete its home, also what root keeps elsewhere."""
    server = EmbeddedServer(home)
    try:
        server.stop()
        folder = server.status().folder
    except WarehouseError:  # a session was killed half way through this function
        folder = None
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(_MEMORY / home.name, ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)


def _remove_homes_of_dead_sessions() -> None:
    """A session that was killed could not stop its server."""
    for home in _TEMPORARY.glob(f"{_HOME_PREFIX}[0-9]*-*"):
        pid = int(home.name.removeprefix(_HOME_PREFIX).partition("-")[0])
        with suppress(FileNotFoundError):  # another session that starts at this moment cleans up as well
            if home.lstat().st_uid == os.geteuid() and home.is_dir() and not psutil.pid_exists(pid):
                remove_server(home)


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """The session's embedded server: URL of its database `epic_omop`. Tests that write take `database_url`.

    It does not wait for the disk: its data ends with the session. Tests that kill servers start their own.
    """
    home = Path(os.environ[_HOME_VARIABLE])
    server = EmbeddedServer(home)
    with FileLock(home / "settings.lock"):
        url = server.ensure_running()
        with psycopg.connect(url, autocommit=True) as connection:
            is_set = connection.execute("SHOW shared_buffers").fetchone() == (_SHARED_BUFFERS,)
            for name, value in _OF_TESTS.items():
                setting = sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
                connection.execute(setting)
        if not is_set:
            server.stop()
            url = server.ensure_running()
    keep_in_memory(url, home, _MEMORY)
    return url


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """A fresh, empty database in the embedded server, dropped after the test."""
    with fresh_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(postgres_url: str) -> Iterator[str]:
    """A fresh, empty database in the embedded server for all tests of a module."""
    with fresh_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def installed_database(postgres_url: str) -> Prepared:
    """The three schemas, empty, to copy."""
    return prepared(postgres_url, Path(os.environ[_HOME_VARIABLE]), "installed", install)


@pytest.fixture(scope="session")
def demo_warehouse(postgres_url: str) -> Prepared:
    """The three schemas with the demonstration vocabulary, to copy, and a home with its concept index."""
    return prepared(postgres_url, Path(os.environ[_HOME_VARIABLE]), "demo_warehouse", install_with_demo_vocabulary)


@pytest.fixture(scope="module")
def installed_url(installed_database: Prepared) -> Iterator[str]:
    """A database with the three schemas, empty at first, for all tests of a module."""
    with installed_database.copy() as url:
        yield url


@pytest.fixture(scope="session")
def other_postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Another PostgreSQL by URL (TCP, password), or the embedded one where there is none (see the last line)."""
    folder = find_other_postgres()
    if folder is None:
        yield request.getfixturevalue("postgres_url")
        return
    with running_postgres(folder) as url:
        yield url


@pytest.fixture
def other_database_url(other_postgres_url: str) -> Iterator[str]:
    """A fresh, empty database in the other PostgreSQL, dropped after the test."""
    with fresh_database(other_postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def other_postgres_folder() -> Path | None:
    """The `bin` folder of the server behind `other_postgres_url`; None if that is the embedded one."""
    return find_other_postgres()


def find_other_postgres() -> Path | None:
    """The `bin` folder of a PostgreSQL that is not the embedded one."""
    named = os.environ.get("EPIC_OMOP_TEST_POSTGRES_BIN")
    if named:
        return Path(named)
    installed = [
        program.parent
        for program in Path("/usr/lib/postgresql").glob("*/bin/initdb")
        if program.parent.parent.name.isdigit()
    ]
    return max(installed, key=lambda folder: int(folder.parent.name), default=None)


@dataclass(frozen=True)
class _Identity:
    """The account that runs a program: PostgreSQL refuses root."""

    account: Account
    folder: Path

    def start(self, *arguments: str, output: int) -> subprocess.Popen[bytes]:
        switch = os.geteuid() != self.account.uid
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            user=self.account.uid if switch else None,
            group=self.account.gid if switch else None,
            extra_groups=[] if switch else None,
        )


@contextmanager
def running_postgres(bin_folder: Path) -> Iterator[str]:
    """A server of the version in `bin_folder`, on loopback with a password: its URL. Stopped and deleted after."""
    identity = _Identity(server_account(), Path(tempfile.mkdtemp(prefix="epic-omop-other-", dir=_TEMPORARY)))
    folder, password = identity.folder, secrets.token_hex(12)
    (folder / "password").write_text(password)
    for path in (folder, folder / "password"):
        os.chown(path, identity.account.uid, identity.account.gid)
    with (folder / "log").open("wb") as log, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        initdb = (str(bin_folder / "initdb"), "-D", "data", "-U", "customer", "-E", "UTF8", "--locale=C.UTF-8")
        made = identity.start(*initdb, "--auth=scram-sha-256", "--pwfile=password", "-N", output=log.fileno())
        assert made.wait() == 0, (folder / "log").read_text()
        options = (f"-p{port}", "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off")
        server = identity.start(str(bin_folder / "postgres"), "-D", "data", *options, output=log.fileno())
        try:
            url = f"postgresql://customer:{password}@127.0.0.1:{port}/postgres"
            _wait_until_ready(url, server, folder / "log")
            yield url
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
            shutil.rmtree(folder)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None, log.read_text()
            SystemClock().sleep(0.05)
