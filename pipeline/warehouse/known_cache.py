"""The files of known lines and contents, kept from one run of a site to the next instead of read each night.

The database says whether they still hold: `etl.known_mark` has a value for each site which a publication replaces when it
changes states, and which any other change of `resource_state` removes (a trigger, so that nothing need be remembered
by who changes states). Files with another mark, or written for other fingerprints, are written anew from the
table. A restored backup brings its mark with it.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import polars as pl
import psycopg

from pipeline.errors import LandingError
from pipeline.warehouse.known import KnownWriter, install_known, merged_known, write_known
from pipeline.warehouse.staging import staging_errors

__all__ = ["KnownCache", "keeping_mark", "known_folder"]

_MARK = "mark.json"


def known_folder(home: Path, site: str) -> Path:
    return home / "known" / site


@contextmanager
def keeping_mark(connection: psycopg.Connection) -> Iterator[None]:
    """Changes of `resource_state` in the block are told to a `KnownCache`: they leave the marks as they are."""
    connection.execute("SET LOCAL epic_omop.keep_known_marks = 'on'")
    yield
    connection.execute("SET LOCAL epic_omop.keep_known_marks = 'off'")


@dataclass
class KnownCache:
    """The files of one site, and what a publication changes. Whoever uses it holds the site's lock."""

    folder: Path
    site: str
    fingerprints: Mapping[str, int]
    #: the database's mark that the files have; None: they are not kept
    mark: str | None = None
    _new_mark: str | None = None
    _removed: list[pl.Series] = field(default_factory=list)
    _has_changes: bool = False
    _prepared: Path | None = None

    def __post_init__(self) -> None:
        self._writer = KnownWriter(self.folder / "new")

    def refresh(self, connection: psycopg.Connection) -> None:
        """Have files that hold for the database's states: the ones that are there, or new ones.

        Raises LandingError on a full disk. Commits.
        """
        self._clear()
        mark = self._given_mark(connection)
        connection.commit()  # before the states are read: what changes them from now on removes the mark
        if self._written() != self._content(mark):
            (self.folder / _MARK).unlink(missing_ok=True)
            write_known(connection, self.folder, self.site, self.fingerprints)
            connection.commit()
            self._write_mark(mark)
        self.mark = mark

    def _given_mark(self, connection: psycopg.Connection) -> str:
        query = "SELECT mark FROM known_mark WHERE site = %s"
        row = connection.execute(query, (self.site,)).fetchone()
        if row is None:
            insert = "INSERT INTO known_mark (site, mark) VALUES (%s, %s) ON CONFLICT (site) DO NOTHING"
            connection.execute(insert, (self.site, str(uuid.uuid4())))
            row = connection.execute(query, (self.site,)).fetchone()
        return str(row[0]) if row else ""

    # --- in a publication ---------------------------------------------------------------------------------------------

    def add(self, states: pl.DataFrame) -> None:
        """States that the publication writes: surrogate_id, raw_hash_high, raw_hash_low, content_hash."""
        if self.mark is not None:
            columns = states.select(
                "surrogate_id", "raw_hash_high", "raw_hash_low", pl.col("content_hash").fill_null(0)
            )
            self._writer.add(columns.to_numpy())
            self._has_changes = True
            if not self._writer.is_spilled:  # so many are only taken into empty files
                self._removed.append(states["surrogate_id"])

    def remove(self, surrogate_ids: pl.Series) -> None:
        """Resources whose lines are not known any more."""
        self._removed.append(surrogate_ids)
        self._has_changes = self._has_changes or len(surrogate_ids) > 0

    def prepare(self) -> None:
        """Write the files for the states after the publication beside those that count. Raises LandingError."""
        if self.mark is not None and self._has_changes:
            ids = self._removed or [pl.Series(dtype=pl.Int64)]
            self._prepared = merged_known(self.folder, self._writer, pl.concat(ids).unique().sort().to_numpy())

    def seal(self, connection: psycopg.Connection) -> None:
        """Give the database the mark of the files that `apply` will put into their place."""
        if self.mark is None:  # the files were never asked for, and do not hold any more
            connection.execute("DELETE FROM known_mark WHERE site = %s", (self.site,))
        elif self._has_changes:
            mark = str(uuid.uuid4())
            updated = connection.execute(
                "UPDATE known_mark SET mark = %s WHERE site = %s AND mark = %s", (mark, self.site, self.mark)
            )
            # Where the mark has gone, states were changed besides: the next run reads them all.
            self._new_mark = mark if updated.rowcount else None

    def apply(self) -> None:
        """Put the files for what was committed into their place. Where that ends half-way the next run writes them."""
        if self._new_mark is not None:
            (self.folder / _MARK).unlink(missing_ok=True)
            if self._prepared is not None:
                # The publication has committed: a disk that fills up here costs the next run a reading, no more.
                with suppress(LandingError):
                    install_known(self.folder, self._prepared)
                    self._write_mark(self._new_mark)
        self._clear()

    # --- files --------------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        shutil.rmtree(self.folder / "new", ignore_errors=True)
        self._writer = KnownWriter(self.folder / "new")
        self._removed, self._new_mark, self._prepared, self._has_changes = [], None, None, False

    def _content(self, mark: str) -> bytes:
        return orjson.dumps({"mark": mark, "fingerprints": self.fingerprints}, option=orjson.OPT_SORT_KEYS)

    def _written(self) -> bytes | None:
        file = self.folder / _MARK
        return file.read_bytes() if file.exists() else None

    def _write_mark(self, mark: str) -> None:
        with staging_errors(self.folder):
            (self.folder / _MARK).write_bytes(self._content(mark))
