"""Whether the services answer: the warehouse and Dagster's webserver. Starts and changes nothing. Dagster's daemon is asked
by `pipeline.orchestration.liveness`, what is wrong with the nights by the rules of the alerts."""

from __future__ import annotations

import httpx

from pipeline.core.errors import EpicOmopError
from pipeline.core.findings import Finding
from pipeline.core.settings import Settings
from pipeline.warehouse.connection import connect
from pipeline.warehouse.embedded.server import EmbeddedServer
from pipeline.warehouse.server_failures import server_errors

__all__ = ["UI_URL", "warehouse_finding", "webserver_finding"]

#: Where `epic-omop ui` serves by default.
UI_URL = "http://127.0.0.1:3000"
_SECONDS = 10.0


def warehouse_finding(settings: Settings) -> Finding:
    """Whether PostgreSQL takes a connection and answers, and holds the schemas."""
    try:
        url = settings.database_url or EmbeddedServer(settings.home).url_if_running()
        if url is None:
            advice = "Start it by any command that needs it, such as epic-omop status."
            return Finding("warehouse", "failed", "The embedded PostgreSQL server does not run.", advice)
        with server_errors(), connect(url) as connection:
            row = connection.execute("SELECT to_regclass(%s)", (f"{settings.etl_schema}.export_job",)).fetchone()
    except EpicOmopError as error:
        return Finding("warehouse", "failed", error.message, error.advice or "")
    if not row or row[0] is None:
        return Finding("warehouse", "failed", "The database holds no warehouse yet.", "Run epic-omop db init.")
    return Finding("warehouse", "ok", "PostgreSQL answers, and holds the schemas.")


def webserver_finding(url: str) -> Finding:
    """Whether Dagster's webserver says who it is at `url`."""
    advice = "Start it: epic-omop ui, or docker compose up -d. --url says where it is."
    try:
        answer = httpx.get(f"{url.rstrip('/')}/server_info", timeout=_SECONDS, trust_env=False)
        version = answer.json().get("dagster_webserver_version") if answer.is_success else None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding("webserver", "failed", f"{url} does not answer ({type(error).__name__}).", advice)
    except (ValueError, AttributeError):
        version = None
    if not version:
        return Finding("webserver", "failed", f"{url} is not Dagster's webserver ({answer.status_code}).", advice)
    return Finding("webserver", "ok", f"Dagster {version} answers at {url}.")
