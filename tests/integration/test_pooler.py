"""A real PgBouncer before a real server: session mode works, the others are refused with what to change.

Needs the program `pgbouncer` (Debian's package of that name) and another PostgreSQL than the embedded one, which listens
on a socket alone.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from pipeline.core.errors import WarehouseError
from pipeline.warehouse.connection import connect
from pipeline.warehouse.embedded.binaries import server_account

_PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
_MODES = {"by_transaction": "transaction", "by_statement": "statement", "by_session": "session", "by_one": "session"}


@pytest.fixture(scope="module")
def pooled(other_postgres_url: str, other_postgres_folder: Path | None) -> Iterator[Callable[[str], str]]:
    """Name in `_MODES` → URL of the database `postgres` through PgBouncer in that mode."""
    if _PROGRAM is None or other_postgres_folder is None:
        pytest.skip("pgbouncer, or a PostgreSQL beside the embedded one, is not installed")
    given, account = urlsplit(other_postgres_url), server_account()
    folder = Path(tempfile.mkdtemp(prefix="epic-omop-pooler-", dir="/tmp"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = f"host=127.0.0.1 port={given.port} dbname=postgres user={given.username} password={given.password}"
    databases = [
        f"{name} = {server} pool_mode={mode} pool_size={1 if name == 'by_one' else 20}" for name, mode in _MODES.items()
    ]
    lines = ["[databases]", *databases, "[pgbouncer]", "listen_addr = 127.0.0.1", f"listen_port = {port}"]
    lines += ["unix_socket_dir =", "auth_type = any", f"logfile = {folder}/log", "ignore_startup_parameters = options"]
    (folder / "pgbouncer.ini").write_text("\n".join([*lines, ""]))
    for path in (folder, folder / "pgbouncer.ini"):
        os.chown(path, account.uid, account.gid)
    as_root = os.geteuid() != account.uid
    pooler = subprocess.Popen(
        [_PROGRAM, folder / "pgbouncer.ini"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=account.uid if as_root else None,
        group=account.gid if as_root else None,
        extra_groups=[] if as_root else None,
    )
    try:
        _wait_until_it_listens(port, pooler)
        yield lambda name: f"postgresql://{given.username}@127.0.0.1:{port}/{name}"
    finally:
        pooler.terminate()
        pooler.wait()
        shutil.rmtree(folder)


def _wait_until_it_listens(port: int, pooler: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert pooler.poll() is None, "pgbouncer ended"
            time.sleep(0.02)


@pytest.mark.parametrize("mode", ["by_transaction", "by_statement"])
def test_a_pooler_that_shares_processes_is_refused(pooled: Callable[[str], str], mode: str) -> None:
    with pytest.raises(WarehouseError, match="transaction mode stands before PostgreSQL") as refused:
        connect(pooled(mode))
    assert "pool_mode = session" in refused.value.advice


def test_a_pooler_without_a_second_connection_is_refused(
    pooled: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.warehouse.pooler._PATIENCE_SECONDS", 0.5)
    with pytest.raises(WarehouseError, match="pool is too small"):
        connect(pooled("by_one"))


def test_session_mode_is_like_no_pooler(pooled: Callable[[str], str], other_postgres_url: str) -> None:
    for url in (pooled("by_session"), other_postgres_url):
        with connect(url) as connection:
            assert connection.execute("SHOW TimeZone").fetchone() == ("UTC",)
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
