"""Which files of a home belong to a backup, by list: landed exports, settings, and secrets by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.identifier_secret import SECRET_FILE
from pipeline.core.settings import Settings
from pipeline.landing.store import LandingStore

__all__ = ["HomeFiles", "find_settings", "landed_files", "member_files"]

_SETTINGS = ("sites.yaml", "operations.yaml", "time_zone", "access_log.anchor")
_FOLDERS = ("mappings",)
#: Which ids the last exports of a group held, a file for each export.
_MEMBERS = "seen"
_SECRETS = (SECRET_FILE,)
_SECRET_FOLDERS = ("keys",)
_SECRET_KEYS = ("private_key_file", "previous_private_key_file")


@dataclass(frozen=True)
class HomeFiles:
    """Paths relative to the home. `outside`: files that settings name and that lie elsewhere."""

    settings: list[str]
    secrets: list[str]
    outside: list[str]


def find_settings(settings: Settings) -> HomeFiles:
    """What of the home is a setting or a secret; whatever is not listed here is not in a backup."""
    home = settings.home
    named = [settings.person_crosswalk, settings.site_mappings]
    named += [site.patients_file for site in settings.sites.values()]
    secret = [getattr(site, key) for site in settings.sites.values() for key in _SECRET_KEYS]
    secret += [
        resolver.api_key_file for site in settings.sites.values() for resolver in getattr(site, "resolvers", ()) or ()
        if getattr(resolver, "api_key_file", None)
    ]  # fmt: skip
    secret += [home / path for path in _named_secrets(settings.operations or home / "operations.yaml")]
    own = {*_below(home, (*_SETTINGS, *_FOLDERS)), *_inside(home, named)}
    secrets = {*_below(home, (*_SECRETS, *_SECRET_FOLDERS)), *_inside(home, secret)}
    outside = {str(path) for path in (*named, *secret) if path and not Path(path).absolute().is_relative_to(home)}
    if settings.operations and not settings.operations.absolute().is_relative_to(home):
        outside.add(str(settings.operations))
    return HomeFiles(sorted(own - secrets), sorted(secrets), sorted(outside))


def member_files(home: Path) -> list[str]:
    """Files of `seen`, relative to the home. They are written before the publication that they belong to is committed, so
    a snapshot comes first."""
    return sorted(_below(home, (_MEMBERS,)))


def landed_files(
    landing: LandingStore, home: Path, exports: Iterable[tuple[str, int]]
) -> dict[str, tuple[int, int, int]]:
    """Path (relative to the home) → size, time, inode of every file of these exports, as far as they are finished."""
    found: dict[str, tuple[int, int, int]] = {}
    for site, export_id in exports:
        if landing.is_finished(site, export_id):
            for path in _files(landing.folder(site, export_id)):
                try:
                    state = path.stat()
                except FileNotFoundError:
                    continue
                found[path.relative_to(home).as_posix()] = (state.st_size, state.st_mtime_ns, state.st_ino)
    return found


def _named_secrets(file: Path) -> list[str]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return list(_values(content))


def _values(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            if isinstance(value, str) and str(key).endswith("_file") and key != "ca_file":
                yield value
            else:
                yield from _values(value)
    elif isinstance(content, list):
        for item in content:
            yield from _values(item)


def _below(home: Path, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield from (path.relative_to(home).as_posix() for path in _files(home / name))


def _inside(home: Path, paths: Iterable[Path | None]) -> Iterator[str]:
    for path in paths:
        if path is not None and Path(path).absolute().is_relative_to(home):
            yield from (file.relative_to(home).as_posix() for file in _files(Path(path).absolute()))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.endswith(".tmp"))
    return [path] if path.is_file() else []
