"""docs/retention.md: what is written by hand (`retention_head.md`, `retention_tail.md`) around the table of settings."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.retention_settings import RetentionSettings

__all__ = ["retention_page"]


def retention_page() -> str:
    """The page as text."""
    head, tail = (
        Path(__file__).with_name(f"retention_{part}.md").read_text(encoding="utf-8") for part in ("head", "tail")
    )
    rows = [
        f"| `{name}` | `{field.default}` | {field.description} |"
        for name, field in RetentionSettings.model_fields.items()
    ]
    return "\n".join([head, "| setting | default | what |", "|---|---|---|", *rows, "", tail])
