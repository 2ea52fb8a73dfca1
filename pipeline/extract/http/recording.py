"""What the HTTP edge reports of itself: an entry for the access log, and each request against the site's budget.

Interfaces and words only. Where the entries go and where requests are counted is in `pipeline/warehouse`.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from pipeline.core.logs import FIELDS

__all__ = [
    "AccessEntry",
    "AccessLog",
    "Event",
    "LoggedAccess",
    "Outcome",
    "RequestBudget",
    "UnlimitedRequests",
    "log_access",
]

#: What a request is for. `auth start` is not a request: the moment in which a token is asked for.
Event = Literal[
    "auth start",
    "discovery",
    "token",
    "kick-off",
    "status",
    "file",
    "delete",
    "search",
    "read",
    "capabilities",
    "keys",
    "terminology",
]

#: refused: the site refused; failed: no answer, or one that cannot be used; blocked: our own rules forbid the address.
Outcome = Literal["ok", "refused", "failed", "blocked"]

_log = logging.getLogger("pipeline.access")


@dataclass(frozen=True)
class AccessEntry:
    """One line of the access log, but for who and when. Nothing of a patient: the URL has neither query values nor
    ids of resources, `detail` is a code."""

    event: Event
    outcome: Outcome = "ok"
    method: str | None = None
    url: str | None = None
    resource_type: str | None = None
    #: HTTP status.
    status: int | None = None
    #: Lines of a file, entries of a page.
    resources: int | None = None
    #: Of the body, decompressed.
    bytes: int | None = None
    detail: str | None = None
    #: The export that it is about.
    export_id: int | None = None


class AccessLog(Protocol):
    """Takes entries from any thread without holding it up."""

    def record(self, entry: AccessEntry) -> None: ...


class RequestBudget(Protocol):
    """Counts requests to a site against what is allowed in an hour."""

    def take(self, patience_seconds: float = float("inf")) -> None:
        """Called before each request. Waits when the budget is nearly spent, if that takes no longer than the
        caller's patience; raises RequestBudgetSpent with the time to continue."""
        ...


class UnlimitedRequests:
    """Counts nothing: for a session without a warehouse."""

    def take(self, patience_seconds: float = float("inf")) -> None:
        pass


class LoggedAccess:
    """Entries go to the log file alone: for a session without a warehouse."""

    def __init__(self, site: str, client_id: str | None) -> None:
        self._who = {"site": site, "client_id": client_id}

    def record(self, entry: AccessEntry) -> None:
        log_access(entry, self._who)


def log_access(entry: AccessEntry, who: dict[str, Any]) -> None:
    """The same entry as a log line, with the same fields."""
    level = logging.INFO if entry.outcome == "ok" else logging.WARNING
    if _log.isEnabledFor(level):
        fields = {name: value for name, value in asdict(entry).items() if value is not None}
        status = f" {entry.status}" if entry.status else ""
        words = (entry.event, entry.outcome + status, entry.method or "", entry.url or "")
        _log.log(level, "%s: %s %s %s", *words, extra={FIELDS: {**who, **fields}})
