"""What a backup says of itself: `manifest.json`, and whether this program can restore it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import orjson

from omop_schema.versions import CdmVersion
from pipeline.core.errors import StorageError, UsageError
from pipeline.core.files import write_whole

__all__ = [
    "FORMAT", "MANIFEST", "BackedUpFile", "Kind", "Manifest", "backups_in", "find_backup", "program_version",
    "read_manifest", "refuse_newer", "write_manifest",
]  # fmt: skip

FORMAT = 1
MANIFEST = "manifest.json"

Kind = Literal["landing", "settings", "secret"]


@dataclass(frozen=True)
class BackedUpFile:
    """`path` is relative to the home. `modified_ns`: of the original, by which the next backup knows it again."""

    path: str
    kind: Kind
    bytes: int
    sha256: str
    modified_ns: int


@dataclass(frozen=True)
class Manifest:
    """`server_version` as libpq gives it (180003); `members`: role without suffix → users of the database server."""

    backup: str
    created_at: str
    program: str
    cdm_version: str
    schemas: dict[str, str]
    role_suffix: str
    alembic_revision: str
    server_version: int
    dump_bytes: int
    dump_sha256: str
    files: list[BackedUpFile]
    extensions: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    members: dict[str, list[str]] = field(default_factory=dict)
    #: Names of the EPIC_OMOP_ variables that were set; never their values.
    variables: list[str] = field(default_factory=list)
    format: int = FORMAT

    @property
    def server_major(self) -> int:
        return self.server_version // 10_000

    @property
    def landing_bytes(self) -> int:
        return sum(file.bytes for file in self.files if file.kind == "landing")


def program_version() -> str:
    return version("epic-omop")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """With a digest over itself. Raises LandingError."""
    content = asdict(manifest)
    write_whole(folder / MANIFEST, orjson.dumps({**content, "digest": _digest(content)}, option=orjson.OPT_INDENT_2))


def backups_in(folder: Path) -> list[str]:
    """Finished backups of the folder, the oldest first. Raises UsageError for a folder that holds none."""
    try:
        found = sorted(path.parent.name for path in folder.glob(f"[!.]*/{MANIFEST}"))
    except OSError:
        found = []
    if not found:
        raise UsageError(
            f"{folder} holds no finished backup.", "Name the folder that was given to `epic-omop backup FOLDER`."
        )
    return found


def find_backup(folder: Path, backup: str | None) -> Manifest:
    """The backup of that name, or the newest one. Raises UsageError, StorageError."""
    known = backups_in(folder)
    if backup is not None and backup not in known:
        raise UsageError(f"There is no backup {backup} in {folder}.", f"There are: {', '.join(known)}.")
    return read_manifest(folder / (backup or known[-1]))


def read_manifest(folder: Path) -> Manifest:
    """Raises StorageError for one that is damaged, UsageError for one of a newer format."""
    file = folder / MANIFEST
    damaged = StorageError(
        f"{file} is damaged or not the manifest of a backup.", "Restore another backup (`--backup`)."
    )
    try:
        content: dict[str, Any] = orjson.loads(file.read_bytes())
        if content["format"] > FORMAT:
            raise _newer(str(content.get("program", "unknown")))
        if content.pop("digest") != _digest(content):
            raise damaged
        files = [BackedUpFile(**item) for item in content.pop("files")]
        manifest = Manifest(**content, files=files)
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror}.", "Check the disk and its rights.") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None
    if not all(_is_inside(item.path) for item in manifest.files):
        raise damaged
    return manifest


def refuse_newer(manifest: Manifest, known_revisions: set[str]) -> None:
    """Raises UsageError for a backup whose database this program does not know yet."""
    newer_cdm = manifest.cdm_version not in {str(version) for version in CdmVersion}
    if manifest.alembic_revision not in known_revisions or newer_cdm:
        raise _newer(manifest.program)


def _newer(program: str) -> UsageError:
    return UsageError(
        f"The backup was made by epic-omop {program}, which is newer than this one ({program_version()}).",
        "Install that version or a later one, then restore.",
    )


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _is_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts
