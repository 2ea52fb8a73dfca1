"""Resources: what assets, ops and sensors are given. There is one, the pipeline's own `Runtime`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.core.settings import Settings
from pipeline.warehouse.runtime import Runtime

__all__ = ["site_resources"]


def site_resources(settings: Settings, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`runtime` holds the settings, the clock and the connections; a test or a demo brings its own by `overrides`."""
    return {"runtime": Runtime(settings), **overrides}
