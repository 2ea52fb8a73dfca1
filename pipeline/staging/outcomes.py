"""The outcomes of lines. Every line of a landed file has exactly one of them."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["LineOutcome"]


class LineOutcome(StrEnum):
    """Each is a column of `etl.export_file`, in this order; those of resources are in `etl.resource_state.outcome`."""

    LOADED = "loaded"
    UNCHANGED = "unchanged"
    SUPERSEDED = "superseded"
    EXCLUDED = "excluded"
    REJECTED = "rejected"
