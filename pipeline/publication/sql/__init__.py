"""SQL of publication, a file a script, and the transaction in which scripts are executed.

A script is one statement or several, each ending with `;` at the end of a line. Its head says what it is for, and lists
the temporary tables that must be there (`reads:`) and those that it leaves (`makes:`); a test compares the heads with what
the server has. `%(name)s` is a value. `{name}` is a name that settings or the schema give (`tables`), or the text of
another file, a fragment. Every temporary table is written with `pg_temp.` before it, but where it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import psycopg

from pipeline.warehouse.copying import EncodedRows, column_types, copy_encoded, read_frame, temporary_table

__all__ = ["SQL_FOLDER", "Database", "Script", "fragment", "read_script"]

SQL_FOLDER = Path(__file__).resolve().parent

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Script:
    """One file. `reads` and `makes` are temporary tables; statements are without comments."""

    name: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    statements: tuple[str, ...]


@cache
def read_script(name: str) -> Script:
    """The script in `<name>.sql`, with its placeholders. Raises FileNotFoundError."""
    lines = (SQL_FOLDER / f"{name}.sql").read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("--").strip() for line in lines if line.startswith("--")]
    heads = {
        head: tuple(word for line in comments if line.startswith(head) for word in line.removeprefix(head).split())
        for head in ("reads:", "makes:")
    }
    statements, own = [], list[str]()
    for line in lines:
        if line.startswith("--"):
            continue
        own.append(line.removesuffix(";"))
        if line.endswith(";"):
            statements.append("\n".join(own))
            own = []
    if any(own):
        statements.append("\n".join(own))
    return Script(name, heads["reads:"], heads["makes:"], tuple(statements))


class _Names(dict[str, str]):
    """Placeholders that have no value of their own are the names of fragments."""

    def __missing__(self, name: str) -> str:
        return fragment(name, **self)


def fragment(name: str, **names: str) -> str:
    """The text of a file with one statement or condition, filled in: a part of other scripts."""
    (text,) = read_script(name).statements
    return text.format_map(_Names(names))


@dataclass(frozen=True)
class Database:
    """An open transaction that has the etl schema on its search_path, and the names of the schemas.

    `emptied`: tables, with their schema, that this transaction emptied. `client_binding`: values are put into statements
    here, so that one may stand where the server takes none, or not as this type.
    """

    connection: psycopg.Connection
    cdm: str
    etl: str
    vocab: str
    emptied: frozenset[str] = frozenset()
    client_binding: bool = False
    _types: dict[str, dict[str, str]] = field(default_factory=dict, repr=False, compare=False)
    _made: set[str] = field(default_factory=set, repr=False, compare=False)

    def execute(self, name: str, values: Values | None = None, /, **names: str) -> int:
        """Execute a script; the number of rows of its last statement that has one."""
        rows = 0
        for statement in self.statements(name, names):
            found = self._cursor().execute(statement, values if "%(" in statement else None).rowcount
            rows = found if found >= 0 else rows
        return rows

    def rows(self, name: str, values: Values | None = None, /, **names: str) -> list[Any]:
        """The rows of a script of one statement, as tuples."""
        (statement,) = self.statements(name, names)
        return self._cursor().execute(statement, values if "%(" in statement else None).fetchall()

    def _cursor(self) -> psycopg.Cursor[Any]:
        return psycopg.ClientCursor(self.connection) if self.client_binding else self.connection.cursor()

    def value(self, name: str, values: Values | None = None, /, **names: str) -> Any:
        """The first column of a script's only row."""
        ((found, *_),) = self.rows(name, values, **names)
        return found

    def has_rows(self, table: str) -> bool:
        """Whether a table, named with its schema, has a row."""
        return bool(self.value("any_row", table=table))

    def frame(
        self, name: str, schema: Mapping[str, Any], values: Values | None = None, /, **names: str
    ) -> pl.DataFrame:
        """The rows of a script of one statement, as a frame of the given columns and types."""
        (statement,) = self.statements(name, names)
        return read_frame(self.connection, statement, schema, values or ())

    def put(self, table: str, frame: pl.DataFrame) -> None:
        """A temporary table with the frame's rows, in the place of one that was put before."""
        if table in self._made:
            self.connection.execute(f"DROP TABLE pg_temp.{table}")
        self._made.add(table)
        temporary_table(self.connection, table, frame)

    def types(self, table: str) -> dict[str, str]:
        """Column → PostgreSQL type of a table, named with its schema."""
        if table not in self._types:
            self._types[table] = column_types(self.connection, table)
        return self._types[table]

    def copy(self, table: str, rows: EncodedRows) -> int:
        """COPY into a table, named with its schema. Returns the number of rows."""
        return copy_encoded(self.connection, table, rows, freeze=table in self.emptied)

    def statements(self, name: str, names: Mapping[str, str]) -> tuple[str, ...]:
        """The statements of a script, filled in."""
        return _filled(name, tuple(sorted({**names, "cdm": self.cdm, "etl": self.etl, "vocab": self.vocab}.items())))


@cache
def _filled(name: str, names: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    filled = _Names(names)
    return tuple(statement.format_map(filled) for statement in read_script(name).statements)
