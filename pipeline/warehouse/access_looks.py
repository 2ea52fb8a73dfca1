"""Entries of `etl.access_log` that are not requests to a site: who looked at what in the warehouse, or took it away.

Each is written and committed by itself, before the look where it is patients' lines. Requests are in `access_log.py`, erasures
in `erased.py`; whether the log is whole is in `access_chain.py`.
"""

from __future__ import annotations

import logging
from typing import Literal

import psycopg

from pipeline.core.errors import WarehouseError
from pipeline.core.workflow import current_workflow
from pipeline.warehouse.runtime import Runtime

__all__ = ["EVERY_SITE", "Look", "record_look"]

_log = logging.getLogger(__name__)

Look = Literal["dead letter", "psql", "snapshot", "serve", "report"]
#: `site` of an entry that is about the whole warehouse.
EVERY_SITE = "*"


def record_look(
    runtime: Runtime,
    event: Look,
    *,
    site: str = EVERY_SITE,
    resource_type: str | None = None,
    resources: int | None = None,
    export_id: int | None = None,
    detail: str | None = None,
    required: bool = True,
) -> None:
    """Add an entry in the name of the current workflow; nothing where there is no warehouse yet. `detail` is a word of ours.

    Raises WarehouseError where it cannot be written: no record, no look. Not `required`: a warning, for those who can get
    there without this program anyway.
    """
    workflow = current_workflow()
    try:
        with runtime.connect() as connection:
            there = connection.execute(
                "SELECT to_regclass(%s)", (f"{runtime.settings.etl_schema}.access_head",)
            ).fetchone()
            if there is None or there[0] is None:
                return
            connection.execute(
                "INSERT INTO access_log (at, site, run_id, os_user, workflow, event, outcome, resource_type, resources,"
                " detail, export_id) VALUES (%s, %s, %s, %s, %s, %s, 'ok', %s, %s, %s, %s)",
                (runtime.clock.now(), site, workflow.run_id, workflow.os_user, workflow.name, event, resource_type,
                 resources, detail, export_id),
            )  # fmt: skip
    except psycopg.errors.InsufficientPrivilege as error:
        if required:
            raise WarehouseError(
                "This database user may not add to the access log, and what is shown must be in it.",
                "`epic-omop db grant omop_steward USER` lets it, for dead letters; omop_auditor for the log itself.",
            ) from error
        _log.warning("This database user may not add to the access log: %s leaves no entry.", event)
