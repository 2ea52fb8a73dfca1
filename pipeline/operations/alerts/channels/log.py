"""Alerts as lines of our own log, which whoever collects logs sees."""

from __future__ import annotations

import logging

from pipeline.core.logs import FIELDS
from pipeline.operations.alerts.messages import Message

__all__ = ["send_log"]

_log = logging.getLogger(__name__)


def send_log(message: Message) -> None:
    """One line a message: ERROR where a person is needed, WARNING else; the parts are fields of JSON logs."""
    needs_person = message.severity == "error" and message.event != "resolved"
    parts = [f"{one.what} {one.to_do} Command: {one.command}" for one in message.problems]
    parts += [f"Over: {one.what}" for one in message.recovered]
    fields = {"alert": message.as_json()}
    level = logging.ERROR if needs_person else logging.WARNING
    _log.log(level, "%s %s", message.subject, " ".join(parts) or message.note, extra={FIELDS: fields})
