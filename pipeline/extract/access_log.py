"""`etl.access_log`: who asked a site for what, when, through which workflow. Rows are added, never changed.

A thread of its own writes what was recorded, at least once a second, so that a download waits for nothing and a
killed process loses no more than its last second. Where the warehouse cannot be written, entries are kept and tried
again; those that are left at the end are written to the log, which has the same entries.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from types import TracebackType

import psycopg

from pipeline.core.clock import Clock
from pipeline.core.errors import WarehouseError
from pipeline.core.settings import SiteSettings
from pipeline.core.workflow import Workflow, current_export, current_workflow
from pipeline.extract.http.recording import AccessEntry, log_access

__all__ = ["WarehouseAccessLog"]

_log = logging.getLogger(__name__)

Connect = Callable[[], AbstractContextManager[psycopg.Connection]]

_FLUSH_SECONDS = 1.0
#: A burst is written at once.
_FLUSH_ENTRIES = 500

_COLUMNS = (
    "at, site, client_id, run_id, os_user, workflow,"
    " event, outcome, method, url, resource_type, status, resources, bytes, detail, export_id"
)


class WarehouseAccessLog:
    """The access log of one session. A context manager: everything is written at its end.

    `connect` gives connections whose search_path begins with the `etl` schema.
    """

    def __init__(self, connect: Connect, site: SiteSettings, clock: Clock, workflow: Workflow | None = None) -> None:
        self._connect = connect
        self._site = site
        self._clock = clock
        self._workflow = workflow or current_workflow()
        self._waiting: deque[tuple[datetime, AccessEntry]] = deque()
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._write_on, name="access-log", daemon=True)

    def __enter__(self) -> WarehouseAccessLog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join()
        if not self.flush():
            _log.error("%d entries of the access log could not be written.", len(self._waiting))

    def record(self, entry: AccessEntry) -> None:
        """Take an entry; returns at once."""
        who = {
            "site": self._site.name,
            "client_id": self._site.client_id,
            "workflow": self._workflow.name,
            "run_id": self._workflow.run_id,
        }
        if entry.export_id is None:
            entry = replace(entry, export_id=current_export())
        log_access(entry, who)
        self._waiting.append((self._clock.now(), entry))
        if len(self._waiting) >= _FLUSH_ENTRIES:
            self._wake.set()

    def flush(self) -> bool:
        """Write what waits; False when the warehouse could not take it."""
        with self._writing:
            batch = list(self._waiting)
            if not batch:
                return True
            try:
                with self._connect() as connection, connection.cursor() as cursor:
                    with cursor.copy(f"COPY access_log ({_COLUMNS}) FROM STDIN") as copy:
                        for at, entry in batch:
                            copy.write_row(self._row(at, entry))
                    connection.commit()
            except (psycopg.Error, WarehouseError) as error:
                _log.warning("The access log cannot be written for now (%s).", type(error).__name__)
                return False
            for _ in batch:
                self._waiting.popleft()
            return True

    def _write_on(self) -> None:
        while not self._closed:
            self._wake.wait(_FLUSH_SECONDS)
            self._wake.clear()
            self.flush()

    def _row(self, at: datetime, entry: AccessEntry) -> tuple[object, ...]:
        workflow = self._workflow
        return (
            at,
            self._site.name,
            self._site.client_id,
            workflow.run_id,
            workflow.os_user,
            workflow.name,
            entry.event,
            entry.outcome,
            entry.method,
            entry.url,
            entry.resource_type,
            entry.status,
            entry.resources,
            entry.bytes,
            entry.detail,
            entry.export_id,
        )
