"""Current lines of the chosen resources → exports of the scratch landing, with other files in another order.

A site's lines come as one export of the time of its newest one, so that open stays, periods and coverages end by the
same as-of date. Lines whose rows keep the date of their own export come before, in an export of that time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime

import psycopg

from omop_schema.exports import ExportKind
from pipeline.extract.bulk import new_job
from pipeline.landing.store import LandedExport, LandedFile, LandingDraft
from pipeline.landing.storing import StoredWriter
from pipeline.load.current_lines import CurrentLines
from pipeline.quality.deep.model import DeepProgress
from pipeline.quality.deep.scratch import Scratch
from pipeline.warehouse import export_jobs

__all__ = ["NOT_IN_LANDING", "exports_of", "sites_of"]

NOT_IN_LANDING = "not in landing"

#: Files of one type: so many that every load has other neighbours than its own.
_FILES_A_TYPE = 3

#: Rows of `deep_resource` that are fetched at a time.
_AT_A_TIME = 20_000


def sites_of(scratch: Scratch, connection: psycopg.Connection, seed: int) -> list[str]:
    """The sites that have chosen resources, in an order of the seed."""
    rows = connection.execute(f"SELECT DISTINCT site FROM {scratch.etl}.deep_resource ORDER BY site").fetchall()
    sites = [site for (site,) in rows]
    random.Random(seed).shuffle(sites)  # noqa: S311 - no secret
    return sites


def exports_of(
    scratch: Scratch, connection: psycopg.Connection, site: str, seed: int, progress: DeepProgress
) -> Iterator[LandedExport]:
    """Land a site's lines in the scratch landing, export by export, oldest first; each is to be loaded before the next.

    Lines that landing does not hold are marked in `deep_resource`. `connection` is in no transaction that must stay.
    Raises LandingError.
    """
    newest = _newest_time(scratch, connection, site)
    times = connection.execute(
        f"SELECT DISTINCT as_of FROM {scratch.etl}.deep_resource WHERE site = %s AND is_dated_by_export AND as_of < %s"
        " ORDER BY as_of",
        (site, newest),
    ).fetchall()
    for (time,) in times:
        condition = "is_dated_by_export AND as_of = %s"
        yield from _export(scratch, connection, _Part(site, time, seed, condition, (time,)), progress)
    condition = "(NOT is_dated_by_export OR as_of >= %s)"
    yield from _export(scratch, connection, _Part(site, newest, seed, condition, (newest,)), progress)


def _newest_time(scratch: Scratch, connection: psycopg.Connection, site: str) -> datetime:
    row = connection.execute(
        f"SELECT max(transaction_time) FROM {scratch.real.settings.etl_schema}.export_job"
        " WHERE site = %s AND published_at IS NOT NULL",
        (site,),
    ).fetchone()
    assert row is not None
    assert row[0] is not None, "what is loaded was published"
    return row[0]  # type: ignore[no-any-return] # a timestamp


class _Part:
    """The lines of one export: those of a site under a condition on `deep_resource`."""

    def __init__(self, site: str, time: datetime, seed: int, condition: str, parameters: tuple[object, ...]) -> None:
        self.site, self.time, self.seed = site, time, seed
        self.where = f"site = %s AND {condition}"
        self.parameters = (site, *parameters)


def _export(
    scratch: Scratch, connection: psycopg.Connection, part: _Part, progress: DeepProgress
) -> Iterator[LandedExport]:
    with scratch.runtime.connect() as own:
        job = new_job(scratch.runtime, own, part.site, ExportKind.FOLDER)
        draft = scratch.runtime.landing.begin(part.site, job.export_id)
        files = _Files(draft, _types(scratch, connection, part), part.seed)
        with files, CurrentLines(scratch.real.landing, part.site) as landed:
            _copy(scratch, connection, part, landed, files, progress)
            landed_files = files.keep()
        export = draft.finish(ExportKind.FOLDER, part.time, landed_files)
        export_jobs.save_landed(own, export, scratch.runtime.clock.now())
        own.commit()
    yield export


def _types(scratch: Scratch, connection: psycopg.Connection, part: _Part) -> list[str]:
    rows = connection.execute(
        f"SELECT DISTINCT resource_type FROM {scratch.etl}.deep_resource WHERE {part.where} ORDER BY 1", part.parameters
    ).fetchall()
    return [name for (name,) in rows]


def _copy(
    scratch: Scratch,
    connection: psycopg.Connection,
    part: _Part,
    landed: CurrentLines,
    files: _Files,
    progress: DeepProgress,
) -> None:
    gone: list[int] = []
    with connection.transaction(), connection.cursor("deep_places") as places:
        places.itersize = _AT_A_TIME
        places.execute(
            "SELECT surrogate_id, resource_type, export_id, file_number, byte_offset, byte_length"
            f" FROM {scratch.etl}.deep_resource WHERE {part.where} ORDER BY export_id, file_number, byte_offset",
            part.parameters,
        )
        for number, (surrogate_id, resource_type, *place) in enumerate(places):
            raw = landed.read(*place)
            if raw is None:
                gone.append(surrogate_id)
            else:
                files.write(resource_type, surrogate_id, raw)
            if number % _AT_A_TIME == 0:
                progress(f"lines of {part.site}", number, 0)
                _mark_gone(scratch, connection, gone)
        _mark_gone(scratch, connection, gone)


def _mark_gone(scratch: Scratch, connection: psycopg.Connection, gone: list[int]) -> None:
    if gone:
        connection.execute(
            f"UPDATE {scratch.etl}.deep_resource SET left_out = %s WHERE surrogate_id = ANY(%s)", (NOT_IN_LANDING, gone)
        )
        gone.clear()


class _Files:
    """Files of each type, among which lines are dealt out by their resource; their numbers are shuffled."""

    def __init__(self, draft: LandingDraft, types: list[str], seed: int) -> None:
        self._draft = draft
        self._seed = seed
        self._places = [(name, part) for name in types for part in range(_FILES_A_TYPE)]
        random.Random(seed).shuffle(self._places)  # noqa: S311 - no secret
        self._stack = ExitStack()
        self._writers: dict[tuple[str, int], StoredWriter] = {}

    def __enter__(self) -> _Files:
        for number, (name, part) in enumerate(self._places, start=1):
            self._writers[name, part] = self._stack.enter_context(self._draft.writer(number, name))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, resource_type: str, surrogate_id: int, raw: bytes) -> None:
        writer = self._writers[resource_type, (surrogate_id ^ self._seed) % _FILES_A_TYPE]
        writer.write(raw.rstrip(b"\r\n") + b"\n")

    def keep(self) -> tuple[LandedFile, ...]:
        return tuple(
            self._draft.keep(self._writers[place], number, place[0])
            for number, place in enumerate(self._places, start=1)
        )
