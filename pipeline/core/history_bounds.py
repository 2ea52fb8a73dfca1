"""How far a site's night may be from its own nights before: what a site gives in place of the bounds of all sites
(`pipeline/quality/checks/history_bounds.yaml`), measure by measure and number by number."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["HistoryBounds", "MeasureBounds"]


class MeasureBounds(BaseModel):
    """Of one measure; None: as for all sites."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: scaled median absolute deviations
    deviations: Annotated[float, Field(gt=0, le=1_000)] | None = None
    #: in the measure's own unit: a share of codes, lines, or rows
    least: Annotated[float, Field(ge=0)] | None = None
    #: of the median
    least_share: Annotated[float, Field(ge=0, le=1_000)] | None = None


class HistoryBounds(BaseModel):
    """Of one site; None: as for all sites. Each measure has the name of its check without `_as_before`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: nights before the last one that are looked at, and how many there must be
    nights: Annotated[int, Field(ge=2, le=90)] | None = None
    least_nights: Annotated[int, Field(ge=2, le=90)] | None = None
    mapping_rate: MeasureBounds = MeasureBounds()
    lines: MeasureBounds = MeasureBounds()
    rows_removed: MeasureBounds = MeasureBounds()
    dead_letters: MeasureBounds = MeasureBounds()
