"""Settings of retention: the section `retention:` of operations.yaml (docs/retention.md)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["RetentionSettings"]


class RetentionSettings(BaseModel):
    """How long what grows with time is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)
