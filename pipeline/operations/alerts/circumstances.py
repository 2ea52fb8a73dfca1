"""What rules are asked with beside the database: settings, the time, and what Dagster says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from pipeline.core.alert_settings import AlertSettings
from pipeline.core.settings import Settings

__all__ = ["Circumstances", "DagsterState", "ObserveDagster", "nothing_known"]


@dataclass(frozen=True)
class DagsterState:
    """What stands in Dagster's own storage, which only `pipeline.orchestration` reads."""

    #: Whether its daemon has reported lately.
    daemon: bool
    #: Sites whose schedule is off.
    stopped: frozenset[str]


#: Asked only where something is missing, for it takes seconds; None: there has been no Dagster here, or it cannot be read.
ObserveDagster = Callable[[], DagsterState | None]


def nothing_known() -> None:
    return None


@dataclass(frozen=True)
class Circumstances:
    settings: Settings
    alerts: AlertSettings
    now: datetime
    dagster: ObserveDagster = nothing_known
