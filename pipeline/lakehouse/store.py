"""The lakehouse folder: immutable snapshots, the pointer to the latest, and what is cleared away. Knows no tables.

    snapshots/000012-20260301T060000Z/     whole, never changed
    snapshots/.000013-20260302T060000Z/    being written, or left by a run that died
    latest -> snapshots/000012-…           replaced by one rename: a reader sees the old state or the new one
    .epic-omop.lock                        marks the folder as ours; held by the run that writes

A snapshot gets its name when all its files are on the disk, and the pointer is set after that.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.core.errors import LakehouseError, LandingError, TransientError, UsageError
from pipeline.core.file_errors import remedy
from pipeline.core.files import make_folder, put_in_place, sync_folder

__all__ = ["LakehouseFolder", "lakehouse_folder"]

_LOCK = ".epic-omop.lock"
_SNAPSHOT = re.compile(r"(\d{6,})-\d{8}T\d{6}Z")
#: In a path, DuckDB and Spark read these as patterns, and name=value as a partition.
_SPECIAL = frozenset("*?[]{}=\n")


def lakehouse_folder(path: str) -> LakehouseFolder:
    """The lakehouse at a path as a person gave it; nothing is made yet. Raises UsageError for what cannot be one."""
    if "://" in path:
        raise UsageError(
            f"{path.partition('://')[0]}:// is not a local folder, and snapshots are written to local folders only.",
            "Publish to a folder, then copy the snapshot it names (docs/lakehouse.md, 'Object stores').",
        )
    folder = Path(path).expanduser().absolute()
    if special := sorted(_SPECIAL & set(str(folder))):
        raise UsageError(
            f"{folder} holds {special[0]!r}, which DuckDB and Spark do not take literally.", "Choose another folder."
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file.", "Name a folder: a new or empty one, or one published to before.")
    return LakehouseFolder(folder)


class LakehouseFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def _snapshots(self) -> Path:
        return self.folder / "snapshots"

    @property
    def _pointer(self) -> Path:
        return self.folder / "latest"

    def latest(self) -> Path | None:
        """The folder of the latest whole snapshot; None before the first."""
        with _lakehouse_errors():
            if not self._pointer.is_symlink():
                return None
            latest = self._snapshots / self._pointer.readlink().name
            return latest if latest.is_dir() else None

    def snapshots(self) -> list[Path]:
        """All whole snapshots, oldest first."""
        if not self._snapshots.is_dir():
            return []
        found = [path for path in self._snapshots.iterdir() if _SNAPSHOT.fullmatch(path.name)]
        return sorted(found, key=_number)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder for one run and clear what dead ones left; makes the folder where there is none.

        Raises UsageError for a folder with other content, TransientError while another run writes, LakehouseError.
        """
        with _lakehouse_errors():
            make_folder(self.folder)
            if not (self.folder / _LOCK).exists() and any(self.folder.iterdir()):
                raise UsageError(
                    f"{self.folder} holds something else.",
                    "Name a new or empty folder, or one that was published to before.",
                )
            lock = FileLock(self.folder / _LOCK, timeout=0, mode=0o600)
            try:
                lock.acquire()
            except Timeout:
                raise TransientError(
                    f"Another run publishes to {self.folder}.", "Try again when it has finished."
                ) from None
        try:
            with _lakehouse_errors():
                self._clear_leftovers()
                yield
        finally:
            lock.release()

    def new_snapshot(self, now: datetime) -> tuple[str, Path]:
        """The id of the next snapshot and the folder to fill; `complete` makes it the latest."""
        numbers = [_number(path) for path in self.snapshots()]
        if self._pointer.is_symlink():  # also when somebody has removed the folder
            numbers.append(_number(self._pointer.readlink()))
        name = f"{max(numbers, default=0) + 1:06d}-{now:%Y%m%dT%H%M%SZ}"
        draft = self._snapshots / f".{name}"
        make_folder(draft)
        return name, draft

    def final_folder(self, snapshot: str) -> Path:
        """Where a snapshot is when it is complete."""
        return self._snapshots / snapshot

    def complete(self, snapshot: str, *, group_readable: bool) -> Path:
        """Give the snapshot its name, then point to it. From then on nothing in it changes."""
        draft, final = self._snapshots / f".{snapshot}", self.final_folder(snapshot)
        _secure(draft, group_readable=group_readable)
        put_in_place(draft, final)
        if group_readable:
            for folder in (self.folder, self._snapshots):
                folder.chmod(folder.stat().st_mode & 0o7700 | 0o050)
        new = self.folder / ".latest"
        new.symlink_to(Path("snapshots") / snapshot)
        put_in_place(new, self._pointer)
        return final

    def prune(self, keep: int) -> int:
        """Remove the oldest snapshots but `keep`, and never the latest. Returns how many were removed."""
        latest = self.latest()
        old = [path for path in self.snapshots() if path != latest]
        unwanted = old[: max(0, len(old) - keep)]
        for path in unwanted:
            hidden = path.with_name(f".{path.name}")  # half a snapshot must not look like one
            put_in_place(path, hidden)
            shutil.rmtree(hidden)
        return len(unwanted)

    def _clear_leftovers(self) -> None:
        (self.folder / ".latest").unlink(missing_ok=True)
        if self._snapshots.is_dir():
            for path in self._snapshots.glob(".*"):
                if _SNAPSHOT.fullmatch(path.name[1:]):
                    shutil.rmtree(path)


def _number(snapshot: Path) -> int:
    match = _SNAPSHOT.fullmatch(snapshot.name)
    return int(match[1]) if match else 0


def _secure(folder: Path, *, group_readable: bool) -> None:
    """Put every name on the disk; where the group may read, say so in every mode. Set-group-id bits stay."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            if group_readable:
                path.chmod(path.stat().st_mode & 0o7700 | 0o050)
            sync_folder(path)
        elif group_readable:
            path.chmod(0o640)


@contextmanager
def _lakehouse_errors() -> Iterator[None]:
    """Turns what the file system refuses into a LakehouseError."""
    stays = "The last whole snapshot stays as it is."
    try:
        yield
    except LandingError as error:  # of the functions that landing writes its files with
        raise LakehouseError(error.message, f"Free space, or see to the folder's rights. {stays}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LakehouseError("The disk of the lakehouse is full.", f"Free space. {stays}") from error
        place = f"{error.filename} " if error.filename else "The lakehouse "
        reason = error.strerror or type(error).__name__
        raise LakehouseError(
            f"{place}cannot be read or written: {reason}.", f"{remedy(error) or 'Check the folder.'} {stays}"
        ) from error
