"""The files of known lines and contents, kept from one run of a site to the next instead of read each night.

The database says whether they are still right: `etl.known_mark` has a value for each site which a publication replaces when it
changes states, and which any other change of `resource_state` removes (a trigger, so that nothing need be remembered
by who changes states). Files with another mark, or written for other fingerprints, are written anew from the
table. A restored backup brings its mark with it.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson
import polars as pl
import psycopg

from pipeline.core.errors import LandingError
from pipeline.core.files import disk_errors
from pipeline.publication.known_lines import KnownWriter, install_known, merged_known, write_known

__all__ = ["KnownCache", "keeping_mark", "known_folder"]

_MARK = "mark.json"


def known_folder(home: Path, site: str) -> Path:
    return home / "known" / site


@contextmanager
def keeping_mark(connection: psycopg.Connection) -> Iterator[None]:
    """Changes of `resource_state` in the block are also given to a `KnownCache`: they leave the marks as they are."""
    connection.execute("SET LOCAL epic_omop.keep_known_marks = 'on'")
    yield
    connection.execute("SET LOCAL epic_omop.keep_known_marks = 'off'")


class KnownCache:
    """The files of one site, and what a publication changes. Whoever uses it has the site's lock."""

    def __init__(self, folder: Path, site: str, fingerprints: Mapping[str, int]) -> None:
        self.folder = folder
        self._site = site
        self._fingerprints = fingerprints
        #: the database's mark that the files have; None: they are not kept
        self._mark: str | None = None
        self._start_over()

    def _start_over(self) -> None:
        """Nothing has changed yet, and nothing of a process that was killed lies next to the files."""
        new = self.folder / "new"
        shutil.rmtree(new, ignore_errors=True)
        self._writer = KnownWriter(new)
        self._removed: list[pl.Series] = []
        self._prepared: Path | None = None
        #: what the files' mark will be when the publication has committed; None: they will be old
        self._new_mark: str | None = None

    @property
    def _has_changes(self) -> bool:
        return bool(self._removed) or self._writer.is_spilled

    def refresh(self, connection: psycopg.Connection) -> None:
        """Have files that are right for the database's states: the ones that are there, or new ones.

        Raises LandingError on a full disk. Commits.
        """
        self._start_over()
        mark = self._given_mark(connection)
        connection.commit()  # before the states are read: what changes them from now on removes the mark
        if self._written() != self._content(mark):
            write_known(connection, self._writer.folder, self._site, self._fingerprints)
            connection.commit()
            self._install(self._writer.folder, mark)
        self._mark = mark

    def _given_mark(self, connection: psycopg.Connection) -> str:
        query = "SELECT mark FROM known_mark WHERE site = %s"
        row = connection.execute(query, (self._site,)).fetchone()
        if row is None:
            insert = "INSERT INTO known_mark (site, mark) VALUES (%s, %s) ON CONFLICT (site) DO NOTHING"
            connection.execute(insert, (self._site, str(uuid.uuid4())))
            row = connection.execute(query, (self._site,)).fetchone()
        return str(row[0]) if row else ""

    # --- in a publication ---------------------------------------------------------------------------------------------

    def add(self, states: pl.DataFrame) -> None:
        """States that the publication writes: surrogate_id, raw_hash_high, raw_hash_low, content_hash."""
        if self._mark is not None and not states.is_empty():
            columns = states.select(
                "surrogate_id", "raw_hash_high", "raw_hash_low", pl.col("content_hash").fill_null(0)
            )
            self._writer.add(columns.to_numpy())
            if not self._writer.is_spilled:  # so many are only taken into empty files
                self._removed.append(states["surrogate_id"])

    def remove(self, surrogate_ids: pl.Series) -> None:
        """Resources whose lines are not known any more."""
        if not surrogate_ids.is_empty():
            self._removed.append(surrogate_ids)

    def prepare(self) -> None:
        """Write the files for the states after the publication, next to those that count. Raises LandingError."""
        if self._mark is not None and self._has_changes:
            ids = self._removed or [pl.Series(dtype=pl.Int64)]
            self._prepared = merged_known(self.folder, self._writer, pl.concat(ids).unique().sort().to_numpy())

    def seal(self, connection: psycopg.Connection) -> None:
        """Give the database the mark of the files that `apply` will put into their place."""
        if self._mark is None:  # the files were never asked for, and are not right any more
            connection.execute("DELETE FROM known_mark WHERE site = %s", (self._site,))
        elif self._has_changes:
            mark = str(uuid.uuid4())
            updated = connection.execute(
                "UPDATE known_mark SET mark = %s WHERE site = %s AND mark = %s", (mark, self._site, self._mark)
            )
            # Where the mark has gone, states were changed besides: the next run reads them all.
            self._new_mark = mark if updated.rowcount else None

    def apply(self) -> None:
        """Put the files for what was committed into their place. Where that ends half-way the next run writes them."""
        if self._new_mark is not None and self._prepared is not None:
            # The publication has committed: a disk that fills up here costs the next run a reading, no more.
            with suppress(LandingError):
                self._install(self._prepared, self._new_mark)
        self._start_over()

    # --- files --------------------------------------------------------------------------------------------------------

    def _content(self, mark: str) -> bytes:
        return orjson.dumps({"mark": mark, "fingerprints": self._fingerprints}, option=orjson.OPT_SORT_KEYS)

    def _written(self) -> bytes | None:
        file = self.folder / _MARK
        return file.read_bytes() if file.exists() else None

    def _install(self, written: Path, mark: str) -> None:
        """Put new files in the place of the old ones; without a mark they are none, so that it comes last."""
        with disk_errors("The mark of known lines", self.folder):
            (self.folder / _MARK).unlink(missing_ok=True)
            install_known(self.folder, written)
            (self.folder / _MARK).write_bytes(self._content(mark))
