"""`sites.yaml`: its entries as they are written, and writing one.

What the keys mean and which values they take is not known here (`pipeline.core.settings`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from pipeline.core.files import replace_file
from pipeline.core.settings_file import SettingsEntry, SettingsFile

__all__ = ["read_site_entries", "write_site_entry"]


def read_site_entries(file: Path) -> list[SettingsEntry]:
    """All sites of the file, in its order; an empty file has none.

    Raises ConfigurationError with the line: what is not valid YAML, unknown or repeated keys, an entry without keys and values.
    """
    settings = SettingsFile(file, "See README, 'sites.yaml'.")
    top = settings.top(("sites",))
    if "sites" not in top:
        return []
    return [
        settings.entry(name, line, node, f"site {name!r}")
        for name, (line, node) in settings.pairs(top["sites"][1], "`sites`")
    ]


def write_site_entry(file: Path, name: str, values: Mapping[str, Any]) -> None:
    """Write or replace one site's entry; the others stay. Raises ConfigurationError for a file that cannot be read."""
    with FileLock(f"{file}.lock"):
        kept = {entry.name: entry.values for entry in read_site_entries(file)} if file.exists() else {}
        kept[name] = _plain(values)
        replace_file(file, yaml.safe_dump({"sites": kept}, sort_keys=False).encode())


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Paths as texts, tuples as lists: what YAML writes."""
    return {
        key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple | list) else value
        for key, value in values.items()
    }
