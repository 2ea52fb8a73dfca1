"""How log lines are written: text for people, or one JSON object a line (`EPIC_OMOP_LOG_FORMAT=json`).

The level is that of our own loggers; libraries are heard from WARNING on, whatever it is, because at DEBUG they
write queries, rows and headers. An exception is shown by its class and the lines of code it came through, never by its
text: a PostgreSQL error quotes the row that it refused. A crash in C, which leaves no exception, writes the stacks of all
threads to standard error, where the log goes: files and lines, no values.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

from pipeline.core.errors import EpicOmopError
from pipeline.core.settings import LogSettings
from pipeline.core.visible_text import shown, shown_lines
from pipeline.core.workflow import current_workflow

__all__ = ["FIELDS", "JsonFormatter", "TextFormatter", "configure_logging", "show_stacks_of_crashes"]

#: Name of the attribute of a log record that holds further fields: `_log.info(…, extra={FIELDS: {…}})`.
FIELDS = "epic_omop_fields"

_OURS = ("pipeline", "omop_schema")


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> logging.Handler:
    """Write the log to `stream` (standard error) from now on; replaces what an earlier call set up."""
    show_stacks_of_crashes()
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    handler.set_name("epic-omop")
    handler.addFilter(_is_ours_or_a_warning)
    root = logging.getLogger()
    for old in [one for one in root.handlers if one.get_name() == handler.get_name()]:
        root.removeHandler(old)
    root.addHandler(handler)
    if root.level > logging.WARNING or root.level == logging.NOTSET:
        root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(settings.level)
    return handler


def show_stacks_of_crashes() -> None:
    """When this process, or one that it starts, dies in C code, the stacks of its threads go to standard error."""
    os.environ.setdefault("PYTHONFAULTHANDLER", "1")  # for children: from their first line on
    if not faulthandler.is_enabled() and sys.__stderr__ is not None:
        with suppress(ValueError, OSError):  # standard error is closed, or no file
            faulthandler.enable(sys.__stderr__)


def _is_ours_or_a_warning(record: logging.LogRecord) -> bool:
    """At the handler as well: a library may set its logger's own level at any time, Dagster's is DEBUG from a run on."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in _OURS


class TextFormatter(logging.Formatter):
    """`LEVEL logger: message`, exceptions without their text."""

    def format(self, record: logging.LogRecord) -> str:
        # Not by the base class: it shows an exception as another handler may have formatted it already.
        line = f"{record.levelname} {record.name}: {shown(record.getMessage())}"
        return f"{line}\n{shown_lines(_told(record.exc_info[1]))}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, workflow, run_id, os_user, and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        workflow = current_workflow()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "workflow": workflow.name,
            "run_id": workflow.run_id,
            "os_user": workflow.os_user,
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = _told(record.exc_info[1])
        return orjson.dumps(line, default=str).decode()


def _told(error: BaseException | None) -> str:
    if error is None:
        return ""
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    words = f": {error}" if isinstance(error, EpicOmopError) else ""
    frames = traceback.extract_tb(error.__traceback__)
    places = "\n".join(f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
    return f"{kind}{words}\n{places}".strip()
