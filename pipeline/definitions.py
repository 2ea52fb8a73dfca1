"""What Dagster loads (`-m pipeline.definitions`): compose, pyproject and the switches of schedules name this module."""

from pipeline.orchestration.definitions import defs

__all__ = ["defs"]
