"""`epic-omop metrics`: the instance in numbers, for Prometheus: a file, an endpoint or standard output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.terminal import echo
from pipeline.core.errors import EpicOmopError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.operations.metrics import Measured
    from pipeline.warehouse.runtime import Runtime

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command("metrics")(metrics)


def metrics(
    textfile: Annotated[
        Path | None,
        typer.Option("--textfile", help="Write this file, whole or not at all: for node_exporter, named *.prom."),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Serve /metrics on 127.0.0.1 until Ctrl-C.")
    ] = None,
) -> None:
    """Measure the instance (docs/status.md): sites, exports, problems, disks, in OpenMetrics. No patient data.

    Without an option, to standard output. Exit code 1: the warehouse does not answer; what is known is written, with
    epic_omop_up 0.

    Example: epic-omop metrics --textfile /var/lib/node_exporter/epic_omop.prom
    """
    from pipeline.operations.metrics import exposition
    from pipeline.warehouse.runtime import Runtime

    if textfile is not None and port is not None:
        raise UsageError("--textfile and --port contradict each other.", "Give one of them.")
    runtime = Runtime.from_environment()
    if port is not None:
        _serve(port, lambda: exposition(_measured(runtime)[0]))
        return
    measured, error = _measured(runtime)
    content = exposition(measured)
    if textfile is None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    else:
        _write(textfile, content)
    if error is not None:
        echo(f"{error.message} {error.advice}".strip(), err=True)
        raise typer.Exit(1)


def _measured(runtime: Runtime) -> tuple[Measured, EpicOmopError | None]:
    """What is known, and why no more is."""
    from pipeline.commands.status import look
    from pipeline.commands.warehouse_state import refuse_empty
    from pipeline.operations.metrics import Measured
    from pipeline.warehouse.server_failures import server_errors

    try:
        with server_errors(), runtime.connect() as connection:
            refuse_empty(connection, runtime.settings.etl_schema)
            found = look(runtime, connection, None)
    except EpicOmopError as error:
        return Measured(runtime.settings, runtime.clock.now(), is_up=False), error
    daemon = found.dagster.daemon if found.dagster else None
    seen = Measured(runtime.settings, found.at, True, daemon, found.sites, found.conditions, found.usage.stored)
    return seen, None


def _write(path: Path, content: bytes) -> None:
    from pipeline.core.files import disk_errors, replace_file

    with disk_errors("The file of metrics", path.parent, "The warehouse is as it was."):
        replace_file(path, content, is_durable=False)
        path.chmod(0o644)  # node_exporter runs as another user; nothing in it is secret


def _serve(port: int, measure: Callable[[], bytes]) -> None:
    """One at a time: a slow look at the warehouse is not begun again by the next question."""
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing for each question."""

    def answer(environ: dict[str, str], start: Callable[..., object]) -> list[bytes]:
        if environ.get("PATH_INFO") != "/metrics" or environ.get("REQUEST_METHOD") != "GET":
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/metrics\n"]
        content = measure()
        start("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
        return [content]

    try:
        server = make_server("127.0.0.1", port, answer, handler_class=Quiet)
    except OSError as error:
        raise UsageError(f"Port {port} of 127.0.0.1 cannot be used ({error.strerror}).", "Choose another.") from error
    with server:
        echo(f"http://127.0.0.1:{port}/metrics", err=True)
        server.serve_forever()
